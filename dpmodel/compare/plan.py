"""What the process that leads a comparison trains, offered to the processes that join it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel.compare.identity import config_digest
from dpmodel.saving.lock import FolderLock, holder
from monitors.errors import CheckpointError, ConfigError
from monitors.untrusted import parse_json, read_text

if TYPE_CHECKING:
    from dpmodel.compare.equal_epsilon import CalibratedVariant

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Plan:
    """The runs of a comparison and all that must be equal on every machine that trains some of them.

    The leading process holds the comparison and writes its plan before its first run. It removes it after the last one,
    before it looks whether others still train and states what all trainings together have spent. A joined process looks
    for the plan when it already holds a run. So a run either is seen by the leading process, or does not begin.

    Args:
        path: The file.
        text: Its content, JSON.
    """

    path: Path
    text: str

    @classmethod
    def of(cls, path: Path, variants: Sequence[CalibratedVariant], seeds: Sequence[int]) -> Plan:
        """The plan, in the file ``path``, of a comparison or of its search."""
        import torch

        import dpmodel

        ordered = sorted(variants, key=lambda variant: variant.name)
        values = {
            "the versions": f"dpmodel {dpmodel.__version__}, torch {torch.__version__}",
            "the seeds": list(seeds),
            "the variants": {variant.name: config_digest(variant.plan.config) for variant in ordered},
            "the test data": {variant.name: str(variant.test_data) for variant in ordered},
        }
        return cls(path, json.dumps(values, indent=1) + "\n")

    @contextmanager
    def offered(self, lock: FolderLock) -> Iterator[None]:
        """Let others join inside the block; ``lock`` holds the comparison."""
        lock.write(self.path, self.text)
        try:
            yield
        finally:
            with suppress(CheckpointError):  # the folder is gone, and the caller says so
                lock.remove(self.path)

    def is_offered(self) -> bool:
        """Whether a process leads the comparison now and has this plan."""
        return holder(self.path.parent) is not None and _content(self.path) == self.text

    def require_offered(self) -> None:
        """Refuse to join a process that trains something else.

        Raises:
            ConfigError: Its plan differs, and says in what; or there is none any more.
        """
        theirs = await_offer(self.path)
        if theirs == self.text:
            return
        mine, others = _parsed(self.text), _parsed(theirs)
        for name, value in mine.items():
            if others.get(name) != value:
                raise ConfigError(
                    f"{name} of this process and of the one to be joined differ: {_shown(value)} here, "
                    f"{_shown(others.get(name))} there ({self.path}). Give both the same CONFIG, options, data and "
                    "versions"
                )
        raise ConfigError(
            f"{self.path} is not the plan of this version; give both processes the same version of dpmodel"
        )


def await_offer(path: Path) -> str:
    """The plan that a process offers in the file ``path``, as soon as there is one.

    Raises:
        ConfigError: No process leads the comparison.
    """
    text = next_offer(path)
    if text is None:
        raise ConfigError(
            f"no process leads the comparison in {path.parent}, so there is nothing to join; start one without --join "
            "first. If one runs on a different machine, the file system does not pass its lock (flock) on to this one, "
            "and runs could be trained twice: use a file system that does"
        )
    return text


def next_offer(path: Path, after: str | None = None) -> str | None:
    """The plan that a process offers in the file ``path``, other than ``after``; None if no process leads."""
    while holder(path.parent) is not None:
        text = _content(path)
        if text is not None and text != after:
            return text
        time.sleep(_LOOK_SECONDS)
    return None


def _content(path: Path) -> str | None:
    try:
        return read_text(path)
    except (OSError, ValueError):
        return None


def _parsed(text: str) -> dict[str, Any]:
    with suppress(ValueError):
        values = parse_json(text)
        return values if isinstance(values, dict) else {}
    return {}


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
