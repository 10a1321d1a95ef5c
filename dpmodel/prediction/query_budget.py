"""The budget of a query ledger, as a file beside it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monitors import checks
from monitors.errors import CheckpointError
from monitors.untrusted import MAX_LEDGER_BYTES, parse_json, read_text

BUDGET_NAME = "budget.json"
FORMAT = "dpmodel-query-budget/2"


@dataclass(frozen=True)
class QueryBudget:
    """What the answers on a query ledger may spend together. It is fixed when the ledger is made.

    Args:
        epsilon: Positive.
        delta: Strictly between 0 and 1.
        before: Number of releases before the queries.
        journal: ID of the journal of the ledger; the budget of another one is refused.

    Example:
        >>> budget = QueryBudget(2.0, 1e-5, 0, "0f")
        >>> QueryBudget.from_json(budget.to_json()) == budget
        True
    """

    epsilon: float
    delta: float
    before: int
    journal: str

    def __post_init__(self) -> None:
        checks.positive(epsilon=self.epsilon)
        checks.open_unit(delta=self.delta)
        checks.non_negative_int(before=self.before)

    def to_json(self) -> str:
        """The budget as JSON text, with a digest."""
        return json.dumps({"format": FORMAT, **asdict(self), "digest": self._digest}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> QueryBudget:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: It is not such a text, or was changed.
        """
        values = parse_json(text)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"it is not a query budget of format {FORMAT!r}")
        stated: dict[str, Any] = {name: values.get(name) for name in ("epsilon", "delta", "before", "journal")}
        found = cls(**stated)
        if values.get("digest") != found._digest:
            raise ValueError("it was changed after it was written; restore the original file")
        return found

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> QueryBudget:
        """The budget in a file.

        Raises:
            CheckpointError: It is not a budget, or was changed.
            OSError: The file cannot be read.
        """
        try:
            return cls.from_json(read_text(Path(path), MAX_LEDGER_BYTES))
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error

    @property
    def _digest(self) -> str:
        values: dict[str, Any] = asdict(self)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
