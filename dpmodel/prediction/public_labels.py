"""Private answers about public inputs, kept in a file: once they were paid for, they may be used for ever."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dpmodel.prediction.answer import Answer
from dpmodel.prediction.query_ledger import QueryLedger
from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from monitors import checks
from monitors.errors import CheckpointError, ConfigError

FORMAT = "dpmodel-public-labels/2"


@dataclass(frozen=True)
class PublicLabels:
    """The noisy votes for public inputs. They hold nothing that was not charged, and may be published.

    Args:
        rows: The public rows that were queried, int64 of shape (queries,).
        answer: The votes.
        noise_multiplier: Noise multiplier of each answer.
        spent: Epsilon of the ledger when they were given.
        head: Head of the ledger when they were given.
        asked: What was asked, as plain JSON values: teachers, data, number of queries, comparison.
    """

    rows: Tensor
    answer: Answer
    noise_multiplier: float
    spent: float
    head: str
    asked: Mapping[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, at once."""
        values = {
            "format": FORMAT,
            "noise_multiplier": self.noise_multiplier,
            "spent": self.spent,
            "head": self.head,
            "asked": dict(self.asked),
        }
        write_tensor_file(path, {"rows": self.rows, "scores": self.answer.scores}, values)

    @classmethod
    def load(cls, path: str | os.PathLike[str], asked: Mapping[str, Any], ledger: QueryLedger) -> PublicLabels | None:
        """The labels in a file; None if there is none.

        Args:
            path: The file.
            asked: What they must be the answers to.
            ledger: The ledger that has to hold their charge.

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
            charged = values["noise_multiplier"], values["spent"], str(values["head"])
            labels = cls(tensors["rows"], answer, *charged, found)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} was written by a different version of dpmodel: {error}") from error
        changed = sorted(name for name in {*asked, *found} if asked.get(name) != found.get(name))
        if changed:
            name = changed[0]
            raise ConfigError(
                f"{path} holds the answers to other queries: {name} is {asked.get(name)!r} here and "
                f"{found.get(name)!r} there. Choose a different folder with --output"
            )
        if not ledger.holds(labels.head):
            raise ConfigError(
                f"{path} was charged to a different ledger, which had spent epsilon {labels.spent:.4g}, or to a later "
                f"state of {ledger.path}; give the ledger that holds its charge"
            )
        return labels
