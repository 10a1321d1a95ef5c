"""The training configuration on which a comparison or search file is based, with the lines of both files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dpmodel.config.marked_yaml import Marked, read_yaml_file
from dpmodel.config.marked_yaml import Path as Keys
from dpmodel.config.schema import place_of
from monitors.errors import ConfigError


def read_marked(path: Path) -> Marked:
    """Read a YAML file with its lines; the errors are those of ``read_yaml_file``."""
    return read_yaml_file(path)


def read_base(marked: Marked, path: Path) -> Marked:
    """The training configuration that the key ``base`` contains or names.

    Args:
        marked: The file with the key ``base``.
        path: Path of that file; if ``base`` is a path, it is relative to this one.

    Raises:
        ConfigError: The named file does not exist, or is not a configuration.
    """
    base = marked.values["base"]
    if isinstance(base, dict):
        return Marked(base, marks_below(marked.marks, ("base",)))
    found = path.parent / base
    if not found.is_file():
        place = place_of(marked.marks, ("base",), str(path))
        raise ConfigError(f"{place}: base: there is no file {found}; paths are relative to the file that names them")
    read = read_yaml_file(found)
    if not isinstance(read.values, dict):
        raise ConfigError(f"{found}: a configuration is a mapping of sections, got {type(read.values).__name__}")
    return read


def marks_below(marks: Mapping[Keys, str], prefix: Keys) -> dict[Keys, str]:
    """The places below ``prefix``, by path relative to it."""
    size = len(prefix)
    return {path[size:]: place for path, place in marks.items() if path[:size] == prefix and len(path) > size}
