"""YAML with the line of every value: safe, without duplicate keys, and with ``1e-5`` read as a number."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

from monitors.errors import ConfigError

Path = tuple[Hashable, ...]

#: Floats as in YAML 1.2. PyYAML follows YAML 1.1, which reads ``1e-5`` as text because it has no dot.
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


_MERGE = "tag:yaml.org,2002:merge"
_PLAIN = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the floats of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


@dataclass(frozen=True)
class Marked:
    """Plain values and the place where each of them was written.

    Args:
        values: Dictionaries, lists and scalars.
        marks: Path from the root to the place (``"run.yaml:12"``).
    """

    values: Any
    marks: dict[Path, str] = field(default_factory=dict)


def read_yaml(text: str, source: str) -> Marked:
    r"""Read one YAML document.

    Args:
        text: The document.
        source: Name of the file, for errors.

    Raises:
        ConfigError: The text is not YAML, or has a duplicate key, a key that is not text, or a tag for something other
            than plain data. The message names the line.

    Example:
        >>> read_yaml("privacy: {delta: 1e-5}", "run.yaml").values
        {'privacy': {'delta': 1e-05}}
        >>> read_yaml("a: 1\na: 2", "run.yaml")
        Traceback (most recent call last):
            ...
        monitors.errors.ConfigError: run.yaml:2: the key 'a' is given twice (first on line 1); keep one
    """
    loader = _Loader(text)
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
    except yaml.YAMLError as error:
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
        if any(node is outer for outer in self._open):
            raise ConfigError(f"{self._place(node)}: the alias refers to itself; write the value out")
        if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN:
            raise ConfigError(f"{self._place(node)}: the tag {node.tag!r} is not plain data; remove it")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self.loader.construct_object(node)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.loader.construct_object(key_node) if isinstance(key_node, yaml.ScalarNode) else None
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
