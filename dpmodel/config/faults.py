"""Describes what is wrong with a configuration: where, which field, which value, and what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from dpmodel.config.schema import Config, place_of
from monitors import checks
from monitors.errors import ConfigError, DataError, DPModelError

if TYPE_CHECKING:
    from dpmodel.config.marked_yaml import Path

#: A value without spaces that no reader wants to see in full; longer than any path.
_LONG_WORD = re.compile(r"(\S{100})\S{1000,}")

#: Longest description of one fault; more is a value of very many parts.
_LONGEST = 1500

#: Most faults that one error lists, and most characters of their descriptions: the wrong file has faults everywhere.
MOST_FAULTS = 20
_LONGEST_LIST = 3000

#: pydantic's type of error -> what the value must be
_MUST_BE: Mapping[str, str] = {
    "float_type": "a number",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "too_short": "a list of at least one entry",
}

#: What to add for a section that is missing.
_EXAMPLES: Mapping[str, str] = {
    "optimizer": ", for example optimizer: {name: SGD, lr: 0.5}; `dpmodel init` writes a complete file",
}


def config_error(
    error: ValidationError, marks: dict[Path, str], source: str, root: type[BaseModel] = Config
) -> ConfigError:
    """One error that lists every fault with its place; ``root`` is the model that was validated."""
    faults = error.errors()
    lines = [f"{place_of(marks, fault['loc'], source)}: {_words(fault, root)}" for fault in faults[:MOST_FAULTS]]
    return one_error(lines, source, len(faults))


def one_error(faults: Sequence[str], source: str, total: int | None = None) -> ConfigError:
    """One error that lists every fault, or the first of very many; there must be at least one.

    Args:
        faults: The faults, or the first ``MOST_FAULTS`` of them.
        source: Where they are.
        total: Their number; default: that of ``faults``.
    """
    total = len(faults) if total is None else total
    listed = [_readable(fault) for fault in faults[:MOST_FAULTS]]
    if total == 1:
        return ConfigError(listed[0])
    fitting = sum(length <= _LONGEST_LIST for length in accumulate(map(len, listed)))
    listed = listed[: max(1, fitting)]
    left = total - len(listed)
    more = [f"... and {left:,} more"] if left else []
    return ConfigError("\n  ".join([f"{total:,} faults in {source}:", *listed, *more]))


def faults_in(config: Config, checks: Mapping[str, Callable[[], object]]) -> list[str]:
    """The faults that ``checks`` find, each with its place.

    Args:
        config: The configuration.
        checks: Path of a setting to a function that raises ``ValueError`` if the setting is wrong. All are called.
    """
    found = []
    for path, check in checks.items():
        try:
            with locating_errors(config, path):
                check()
        except ConfigError as error:
            found.append(str(error))
    return found


@contextmanager
def locating_errors(config: Config, path: str) -> Iterator[None]:
    """Turn a ``ValueError`` raised in the block into a ``ConfigError`` that names ``path`` and where it was written.

    If a setting inside ``path`` was overridden (``--set``, a search), the error names the override. A ``DataError``
    stays one, because the data are at fault and not the configuration, and names the place too.

    Example:
        >>> config = Config.model_validate({
        ...     "network": "lenet5", "optimizer": "SGD", "privacy": {"noise_multiplier": 1},
        ...     "training": {"epochs": 1, "batch_size": 8}})
        >>> with locating_errors(config, "privacy.noise"):
        ...     raise ValueError("rate must be below 1, got 1")
        Traceback (most recent call last):
            ...
        monitors.errors.ConfigError: configuration: privacy.noise: rate must be below 1, got 1
    """
    try:
        yield
    except ConfigError:
        raise
    except DataError as error:
        error.args = (f"{config.where(path)}: {path}: {error}",)
        raise
    except MemoryError as error:
        raise ConfigError(f"{config.where(path)}: {path}: this does not fit into memory") from error
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, DPModelError) and not isinstance(error, ValueError):
            raise
        text = _first_part(error)
        raise ConfigError(f"{_blamed(config, path, text)}: {path}: {text}") from error


def _first_part(error: Exception) -> str:
    """The message of ``error`` in one line, without the places in C++ that torch adds."""
    return _readable(" ".join(str(error).partition("\nException raised from")[0].split()))


def _readable(text: str) -> str:
    text = _LONG_WORD.sub(r"\1...", text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 300]} ... {text[-300:]}"


@contextmanager
def locating_file_errors(config: Config) -> Iterator[None]:
    """Turn an ``OSError`` about a file that a configured callback names into a ``ConfigError``."""
    try:
        yield
    except DPModelError:
        raise
    except OSError as error:
        path = _naming(config, error)
        if path is None:
            raise
        raise ConfigError(
            f"{config.where(path)}: {path}: {error.filename} cannot be written: {error.strerror}; use a different path"
        ) from error


def _blamed(config: Config, path: str, message: str) -> str:
    """The place that ``message`` is about: an override inside ``path`` that it mentions, or else ``path`` itself."""
    place, changes = config.where(path), config.changes(path)
    spoken_of = [found for key, value, found in changes if _speaks_of(message, key) or _speaks_of(message, value)]
    if spoken_of:
        return spoken_of[0]
    others = dict.fromkeys(found for _, _, found in changes)
    return f"{place} (with {', '.join(others)})" if others else place


def _speaks_of(message: str, word: Any) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(repr(word))}(?![\w.]\w)", message) is not None


def _naming(config: Config, error: OSError) -> str | None:
    """The setting of a callback whose value is the file of ``error``, or a path above or below it."""
    if error.filename is None:
        return None
    file = FilePath(os.fsdecode(error.filename)).absolute()
    return next(
        (
            f"callbacks.{index}.{key}"
            for index, callback in enumerate(config.callbacks)
            for key, value in callback.options.items()
            if isinstance(value, str) and _on_one_branch(FilePath(value), file)
        ),
        None,
    )


def _on_one_branch(named: FilePath, file: FilePath) -> bool:
    full = named.absolute()
    # A bare word may be something else, such as the name of a metric, so only the file itself counts.
    return full == file or (len(named.parts) > 1 and (full in file.parents or file in full.parents))


def _words(fault: Any, root: type[BaseModel]) -> str:
    path = checks.shortened(".".join(str(part) for part in fault["loc"])) or "the configuration"
    kind = fault["type"]
    if kind == "extra_forbidden":
        known = _known_keys(fault["loc"][:-1], root)
        hint = checks.nearest_hint(fault["loc"][-1], known) or ";"
        return f"unknown key {path!r}{hint} known here: {', '.join(known)}"
    if kind == "missing":
        return f"{path} is missing; add it{_EXAMPLES.get(path, '')}"
    if kind == "value_error":
        return _joined(path, str(fault["loc"][-1]) if fault["loc"] else "", str(fault["ctx"]["error"]))
    wanted = _MUST_BE.get(kind)
    given = checks.shown(fault["input"])
    return f"{path} must be {wanted}, got {given}" if wanted else f"{path}: {fault['msg']}, got {given}"


def _joined(path: str, field: str, message: str) -> str:
    """``privacy.norm_bound must be ...`` for a message that starts with its field; others follow a colon."""
    if field and message.startswith(f"{field} "):
        return path + message[len(field) :]
    return f"{path}: {message}"


def _known_keys(path: tuple[Any, ...], root: type[BaseModel]) -> list[str]:
    model = root
    for key in path:
        if isinstance(key, int) or key not in model.model_fields:
            continue
        inner = _model_in(model.model_fields[key].annotation)
        model = inner or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)
