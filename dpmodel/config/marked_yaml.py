"""YAML with the line of every value: safe, without duplicate keys, and with ``1e-5`` read as a number."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

from monitors.errors import ConfigError
from monitors.untrusted import MAX_DEPTH, MAX_DIGITS, read_text

Path = tuple[Hashable, ...]

#: Floats as in YAML 1.2. PyYAML follows YAML 1.1, which reads ``1e-5`` as text because it has no dot.
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


#: Integers as in YAML 1.2: in YAML 1.1, ``0100`` is 64 and ``1:30`` is 90.
_INTEGER = re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")

#: Largest file and most values, counted after aliases are expanded.
MAX_BYTES = 2**17
MAX_VALUES = 20_000

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_PLAIN = frozenset(f"{_TAG}{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null"))

#: Types that are resolved differently in YAML 1.2; it has no dates.
_OF_OLD_YAML = frozenset(f"{_TAG}{kind}" for kind in ("float", "int", "timestamp"))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers of YAML 1.2 and bounded nesting and merging."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._merging: list[yaml.Node] = []
        self._merged = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node, no deeper than ``MAX_DEPTH``."""
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Carry out the merge keys of ``node``, each key once."""
        if any(node is outer for outer in self._merging):
            raise yaml.constructor.ConstructorError(None, None, "a mapping merges itself", node.start_mark)
        sources = [value for key, value in node.value if key.tag == _MERGE]
        self._merging.append(node)
        try:
            for source in sources:
                for part in source.value if isinstance(source, yaml.SequenceNode) else [source]:
                    if isinstance(part, yaml.MappingNode):
                        self.flatten_mapping(part)
                        self._merged += len(part.value)
                    if self._merged > MAX_VALUES:
                        problem = f"merge keys expand to more than {MAX_VALUES:,} values"
                        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            super().flatten_mapping(node)
        finally:
            self._merging.pop()
        if sources:
            node.value = list(
                {
                    key.value if isinstance(key.value, str) else id(key): (key, value) for key, value in node.value
                }.values()
            )


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OF_OLD_YAML]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}int", _INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


@dataclass(frozen=True)
class Marked:
    """Plain values and the place where each of them was written.

    Args:
        values: Dictionaries, lists and scalars.
        marks: Path from the root to the place (``"run.yaml:12"``).
    """

    values: Any
    marks: dict[Path, str] = field(default_factory=dict)


def read_yaml_file(path: str | os.PathLike[str]) -> Marked:
    """Read the one YAML document in the file ``path``.

    Raises:
        ConfigError: The file is missing, not a regular file, not text in UTF-8, or larger than ``MAX_BYTES``; or as for
            ``read_yaml``.
    """
    try:
        text = read_text(path, MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"the configuration cannot be read: {error}") from error
    return read_yaml(text, str(path))


def read_yaml(text: str, source: str) -> Marked:
    r"""Read one YAML document.

    Args:
        text: The document.
        source: Name of the file, for errors.

    Raises:
        ConfigError: The text is not YAML, or has a duplicate key, a key that is not text, or a tag for something other
            than plain data; or it has more than ``MAX_VALUES`` values after aliases are expanded, is nested deeper than
            ``MAX_DEPTH``, or has an integer of more than ``MAX_DIGITS`` characters. The message names the line.

    Example:
        >>> read_yaml("privacy: {delta: 1e-5}", "run.yaml").values
        {'privacy': {'delta': 1e-05}}
        >>> read_yaml("a: 1\na: 2", "run.yaml")
        Traceback (most recent call last):
            ...
        monitors.errors.ConfigError: run.yaml:2: the key 'a' is given twice (first on line 1); keep one
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line, code = text.count("\n", 0, error.position) + 1, ord(text[error.position])
        raise ConfigError(
            f"{source}:{line}: not valid YAML: the character U+{code:04X} is not allowed; remove it"
        ) from error
    try:
        node = loader.get_single_node()
        if node is None:
            return Marked({})
        reader = _Reader(loader, source)
        return Marked(reader.value(node, ()), reader.marks)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        # Some problems are half a sentence: "expected a single document" (context), "but found another" (problem).
        halves = error.problem is None or error.problem.startswith("but ")
        words = ", ".join(filter(None, [error.context, error.problem])) if halves else error.problem
        raise ConfigError(f"{where}: not valid YAML: {words}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    finally:
        loader.dispose()


class _Reader:
    """Builds values from YAML nodes and records their lines."""

    def __init__(self, loader: _Loader, source: str) -> None:
        self.loader = loader
        self.source = source
        self.marks: dict[Path, str] = {}
        self._open: list[yaml.Node] = []

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.marks[path] = self._place(node)
        if len(self.marks) > MAX_VALUES:
            raise ConfigError(
                f"{self._place(node)}: more than {MAX_VALUES:,} values, aliases included; shorten the file"
            )
        if any(node is outer for outer in self._open):
            raise ConfigError(f"{self._place(node)}: the alias refers to itself; write the value out")
        if len(path) > MAX_DEPTH:
            raise ConfigError(f"{self._place(node)}: nested deeper than {MAX_DEPTH} levels through aliases")
        if node.tag not in _PLAIN:
            raise ConfigError(f"{self._place(node)}: the tag {node.tag!r} is not plain data; remove it")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalar(node)
        finally:
            self._open.pop()

    def _scalar(self, node: yaml.Node) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind == "int" and len(node.value) > MAX_DIGITS:
            raise ConfigError(
                f"{self._place(node)}: the integer {node.value[:12]}... has {len(node.value)} characters; at most "
                f"{MAX_DIGITS} are read"
            )
        try:
            return self.loader.construct_object(node)
        except (ValueError, LookupError) as error:
            raise ConfigError(f"{self._place(node)}: {node.value[:80]!r} cannot be read as {kind}") from error

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            scalar = isinstance(key_node, yaml.ScalarNode) and key_node.tag in (*_PLAIN, _MERGE)
            key = key_node.value if key_node.tag == _MERGE else self._scalar(key_node) if scalar else None
            if not isinstance(key, str):
                raise ConfigError(f"{self._place(key_node)}: a key must be text, got {key!r}; quote it if it is a name")
            if key in seen:
                first = seen[key] + 1
                raise ConfigError(
                    f"{self._place(key_node)}: the key {key!r} is given twice (first on line {first}); keep one"
                )
            seen[key] = key_node.start_mark.line
        self.loader.flatten_mapping(node)
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            inner: Path = (*path, key)
            values[key] = self.value(value_node, inner)
            self.marks[inner] = self._place(key_node)
        return values

    def _place(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}"
