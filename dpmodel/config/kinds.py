"""The kinds of configuration file, told apart by a key, so that the wrong command can name the right one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitors.errors import ConfigError


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Args:
        words: What it is.
        key: Top-level key that every file of this kind has, and none of another kind.
        command: The command that takes it.
    """

    words: str
    key: str
    command: str


KINDS: Mapping[str, Kind] = {
    "training": Kind("the configuration of one training", "training", "train"),
    "comparison": Kind("a comparison", "variants", "compare"),
    "search": Kind("a search", "search", "tune"),
}


def require_kind(kind: str, values: Mapping[str, Any], source: str) -> None:
    """Refuse a file of another kind.

    Args:
        kind: Name of the kind that is needed, a key of ``KINDS``.
        values: What the file holds.
        source: Name of the file.

    Raises:
        ConfigError: It is of another kind; the message names the command that takes it.

    Example:
        >>> require_kind("search", {"base": "run.yaml", "variants": {}}, "all.yaml")
        Traceback (most recent call last):
            ...
        monitors.errors.ConfigError: all.yaml: this is a comparison, not a search; use `dpmodel compare all.yaml`
    """
    wanted = KINDS[kind]
    if wanted.key in values:
        return
    found = next((other for other in KINDS.values() if other.key in values), None)
    if found is not None:
        raise ConfigError(
            f"{source}: this is {found.words}, not {wanted.words}; use `dpmodel {found.command} {source}`"
        )
