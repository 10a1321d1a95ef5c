"""Private answers about public inputs, kept in a file: once they were paid for, they may be used for ever."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dpmodel.prediction.answer import Answer
from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from monitors import checks
from monitors.errors import CheckpointError, ConfigError

FORMAT = "dpmodel-public-labels/1"


@dataclass(frozen=True)
class PublicLabels:
    """The noisy votes for public inputs. They hold nothing that was not charged, and may be published.

    Args:
        rows: The public rows that were queried, int64 of shape (queries,).
        answer: The votes.
        noise_multiplier: Noise multiplier of each answer.
        spent: Epsilon of the ledger when they were given.
        asked: What was asked, as plain JSON values: teachers, data, number of queries, comparison.
    """

    rows: Tensor
    answer: Answer
    noise_multiplier: float
    spent: float
    asked: Mapping[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, at once."""
        values = {
            "format": FORMAT,
            "noise_multiplier": self.noise_multiplier,
            "spent": self.spent,
            "asked": dict(self.asked),
        }
        write_tensor_file(path, {"rows": self.rows, "scores": self.answer.scores}, values)

    @classmethod
    def load(cls, path: str | os.PathLike[str], asked: Mapping[str, Any], spent: float) -> PublicLabels | None:
        """The labels in a file; None if there is none.

        Args:
            path: The file.
            asked: What they must be the answers to.
            spent: Epsilon of the ledger that has to hold them.

        Raises:
            ConfigError: They answer something else, or were charged to a different ledger.
            CheckpointError: The file is damaged.
        """
        if not Path(path).exists():
            return None
        tensors, values = read_tensor_file(path)
        try:
            if values["format"] != FORMAT:
                raise ValueError(f"its format is {checks.shown(values['format'])}")
            checks.positive(noise_multiplier=values["noise_multiplier"], spent=values["spent"])
            answer, found = Answer(tensors["scores"], votes=True), dict(values["asked"])
            labels = cls(tensors["rows"], answer, values["noise_multiplier"], values["spent"], found)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} was written by a different version of dpmodel: {error}") from error
        changed = sorted(name for name in {*asked, *found} if asked.get(name) != found.get(name))
        if changed:
            name = changed[0]
            raise ConfigError(
                f"{path} holds the answers to other queries: {name} is {asked.get(name)!r} here and "
                f"{found.get(name)!r} there. Choose a different folder with --output"
            )
        if spent < labels.spent:
            raise ConfigError(
                f"{path} was charged to a ledger that had spent epsilon {labels.spent:.4g}, but this one has spent "
                f"{spent:.4g}; give the ledger that holds its charge"
            )
        return labels
