"""The kinds of configuration file. Each has a distinctive key, so that the wrong command can name the right one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitors.errors import ConfigError


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Args:
        words: What it is, for messages.
        key: Top-level key that only files of this kind have.
        command: The command that reads it.
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
    """Refuse a file of a different kind.

    Args:
        kind: The required kind, a key of ``KINDS``.
        values: Contents of the file.
        source: Name of the file.

    Raises:
        ConfigError: It is of a different kind; the message names the command that reads it.

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
