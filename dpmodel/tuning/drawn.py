"""The drawn runs of a search, kept in its folder so that a resumed search is the same search."""

from __future__ import annotations

import hashlib
import json
import random
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpmodel.saving.lock import LOCK_NAME
from dpmodel.tuning.search import Tuning
from monitors.atomic import write_atomically
from monitors.errors import ConfigError
from monitors.untrusted import read_json

#: Length of a run's name, which reveals nothing about its place among the runs.
_NAME_BYTES = 4
_NAME = re.compile(f"[0-9a-f]{{{2 * _NAME_BYTES}}}")


@dataclass(frozen=True)
class DrawnRuns:
    """Values and name of every run, in the order of drawing; their number may be secret.

    Args:
        values: For each run, the value of every searched field.
        names: For each run, the name of its folder.
    """

    values: Sequence[dict[str, Any]]
    names: Sequence[str]

    @classmethod
    def of(cls, tuning: Tuning, folder: Path) -> DrawnRuns:
        """The runs that ``folder`` states, or new ones, which are written there.

        Raises:
            ConfigError: The folder holds something else, or its file was changed after it was written.
        """
        path = folder / "search.json"
        if path.exists():
            return cls._read(tuning, path)
        if any(file.name != LOCK_NAME for file in folder.iterdir()):
            raise ConfigError(
                f"{folder} is not empty and does not hold a search; choose a different folder with --output"
            )
        # The price of random stopping holds only if the number of runs is secret.
        secret = random.SystemRandom()
        runs = [tuning.draw(secret) for _ in range(tuning.charge.number(tuning.definition.runs, secret))]
        for values in runs:
            tuning.config(values)
        # The place of the best run must be secret too, because it reveals how many runs there are.
        drawn = cls(runs, [secrets.token_hex(_NAME_BYTES) for _ in runs])
        content = {"digest": _definition_digest(tuning), "runs": drawn.values, "names": drawn.names}
        write_atomically(path, json.dumps({**content, "seal": _digest(content)}, indent=1) + "\n")
        return drawn

    @classmethod
    def _read(cls, tuning: Tuning, path: Path) -> DrawnRuns:
        try:
            stored = read_json(path)
            content = {key: stored[key] for key in ("digest", "runs", "names")}
            digest, drawn = content["digest"], cls(content["runs"], content["names"])
            sealed = stored["seal"] == _digest(content) and drawn._sound(tuning)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{path} is damaged ({error}); {_REMEDY}") from error
        if not sealed:
            raise ConfigError(f"{path} was changed after it was written, so runs may be missing; {_REMEDY}")
        if digest != _definition_digest(tuning):
            raise ConfigError(
                f"{path.parent} holds a different search, or this one before its file was changed; choose a different "
                "folder with --output"
            )
        return drawn

    def _sound(self, tuning: Tuning) -> bool:
        """Whether a name can only mean a folder of this search, and every run has a value for every field."""
        names, fields = self.names, set(tuning.definition.search)
        return (
            len(set(names)) == len(names) == len(self.values) > 0
            and all(_NAME.fullmatch(name) for name in names)
            and all(set(values) == fields for values in self.values)
        )


_REMEDY = "restore the original file, or choose a different folder with --output"


def _definition_digest(tuning: Tuning) -> str:
    return _digest([tuning.definition.model_dump(mode="json"), tuning.base.values])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
