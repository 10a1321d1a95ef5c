"""The training configuration that a file of another kind is built on, with the lines of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dpmodel.config.marked_yaml import Marked, read_yaml
from dpmodel.config.marked_yaml import Path as Keys
from dpmodel.config.schema import place_of
from monitors.errors import ConfigError


def read_marked(path: Path) -> Marked:
    """A YAML file with its lines.

    Raises:
        ConfigError: It cannot be read, or is not YAML.
    """
    try:
        return read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {reason}") from error


def read_base(marked: Marked, path: Path) -> Marked:
    """The training configuration that the key ``base`` holds or names.

    Args:
        marked: The file that has it.
        path: Where that file lies; a path as ``base`` is relative to it.

    Raises:
        ConfigError: The file that it names is not there, or is no configuration.
    """
    base = marked.values["base"]
    if isinstance(base, dict):
        return Marked(base, marks_below(marked.marks, ("base",)))
    found = path.parent / base
    if not found.is_file():
        place = place_of(marked.marks, ("base",), str(path))
        raise ConfigError(f"{place}: base: there is no file {found}; a path is relative to this file")
    read = read_marked(found)
    if not isinstance(read.values, dict):
        raise ConfigError(f"{found}: a configuration is a mapping of sections, got {type(read.values).__name__}")
    return read


def marks_below(marks: Mapping[Keys, str], prefix: Keys) -> dict[Keys, str]:
    """The places below ``prefix``, by path from there."""
    size = len(prefix)
    return {path[size:]: place for path, place in marks.items() if path[:size] == prefix and len(path) > size}
