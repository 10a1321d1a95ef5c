"""Overrides from the command line (``--set path.to.key=value``), applied to the settings of a file."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from typing import Any

from dpmodel.config.marked_yaml import Marked, Path, read_yaml
from monitors import checks
from monitors.errors import ConfigError
from monitors.untrusted import MAX_DEPTH


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Split ``"path.to.key=value"``; the value is read as YAML.

    Raises:
        ConfigError: There is no ``=``, or no path before it.

    Example:
        >>> parse_override("privacy.delta=1e-6")
        (('privacy', 'delta'), 1e-06)
        >>> parse_override("performance.device=cpu")
        (('performance', 'device'), 'cpu')
    """
    path, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in path.split("."))
    if not equals or not all(keys):
        raise ConfigError(f"--set takes path.to.key=value, got {text!r}; for example --set training.epochs=5")
    if len(keys) > MAX_DEPTH:
        raise ConfigError(f"--set {text[:40]}...: a path has at most {MAX_DEPTH} keys, got {len(keys)}")
    given = read_yaml(value, f"--set {text}").values
    return keys, None if given == {} and not value.strip() else given


def apply_overrides(
    marked: Marked, overrides: Iterable[str | tuple[Sequence[str], Any]], place: str | None = None
) -> Marked:
    """The settings with every override applied; ``marked`` is not changed.

    Args:
        marked: Settings of a file.
        overrides: Strings as given to ``--set``, or pairs of path and value.
        place: Where the pairs were written, for errors; default: the command line.

    Raises:
        ConfigError: A path goes through something that has no keys, or to an entry that a list does not have.

    Example:
        >>> apply_overrides(Marked({"privacy": {"delta": 1e-5}}), ["privacy.delta=1e-6"]).values
        {'privacy': {'delta': 1e-06}}
    """
    values, marks = copy.deepcopy(marked.values), dict(marked.marks)
    for override in overrides:
        keys, value = parse_override(override) if isinstance(override, str) else (tuple(override[0]), override[1])
        label = f"--set {override}" if isinstance(override, str) else place or "command line"
        path = _put(values, keys, value, label)
        marks = {known: place for known, place in marks.items() if known[: len(path)] != path}
        marks[path] = label
    return Marked(values, marks)


def _put(values: Any, keys: Sequence[str], value: Any, label: str) -> Path:
    path: list[Any] = []
    here = values
    for position, key in enumerate(keys):
        index = _index(here, key, label)
        path.append(index)
        if position == len(keys) - 1:
            here[index] = value
        elif isinstance(here, dict):
            if isinstance(here.get(index), str):
                # `loss: mse` is short for `loss: {name: mse}`
                here[index] = {"name": here[index]}
            if here.get(index) is None:
                here[index] = {}
            here = here[index]
        else:
            here = here[index]
    return tuple(path)


def _index(here: Any, key: str, label: str) -> Any:
    if isinstance(here, dict):
        return key
    if not isinstance(here, list):
        raise ConfigError(f"{label}: {key!r} cannot be set inside {checks.shown(here)}, which has no keys")
    # Not isdigit: it accepts characters that int refuses.
    if not re.fullmatch("[0-9]{1,9}", key) or int(key) >= len(here):
        raise ConfigError(
            f"{label}: the list has entries 0 to {len(here) - 1}, got {key!r}; set the whole list instead"
        )
    return int(key)
