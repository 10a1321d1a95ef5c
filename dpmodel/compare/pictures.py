"""The figures of a comparison: those of trainings, with a line per variant, and the spread over seeds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel.compare.results import ComparisonResult, VariantRow
from dpmodel.figures.curve import Curve, curve_of_plan
from dpmodel.figures.epsilon_curve import MOST_MARKS, Privacy, epsilon_over
from dpmodel.figures.gallery import draw_all
from dpmodel.figures.spread import SpreadRow, spread_over_seeds
from monitors.atomic import write_atomically
from monitors.untrusted import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPREAD = "spread_over_seeds"


def draw_comparison(result: ComparisonResult, cache: Path) -> dict[str, Figure]:
    """All figures of a comparison by name, the most important first.

    Args:
        result: Results of the comparison.
        cache: JSON file with privacy curves that were computed before.
    """
    definition = result.comparison.definition
    rows = [
        SpreadRow(row.name, {run.seed: run.value for run in row.runs}, row.summary, row.difference)
        for row in result.variants
    ]
    spread = spread_over_seeds(rows, definition.metric, result.baseline)
    metric = "valid_loss" if definition.metric == "loss" else definition.metric
    return {SPREAD: spread, **draw_all(curves_of(result, cache), metric)}


def curves_of(result: ComparisonResult, cache: Path) -> list[Curve]:
    """One curve per variant. Epsilon is that of the planned ledger, which every run of the variant follows."""
    curves = _Curves(cache, result)
    found = [
        curve_of_plan(row.name, row.plan, [run.history for run in row.runs], curves(row)) for row in result.variants
    ]
    curves.save()
    return found


class _Curves:
    """Privacy curves, cached between calls because a tight one takes seconds.

    The digest of each cached curve and its last epsilon are checked, so a damaged cache is computed again.
    """

    def __init__(self, cache: Path, result: ComparisonResult) -> None:
        self.cache = cache
        self.target = result.comparison.definition.target
        try:
            found = read_json(cache)
        except (OSError, ValueError):
            found = None
        self.known: dict[str, Any] = found if isinstance(found, dict) else {}

    def __call__(self, row: VariantRow) -> Privacy:
        delta, accountant = self.target.delta, self.target.accountant
        ledger = row.plan.ledger()
        key = f"{ledger.digest()} {delta:g} {accountant} {MOST_MARKS} steps"
        curve = self._read(key, row)
        if curve is None:
            ends = [row.plan.steps_per_epoch * epoch for epoch in range(1, row.plan.config.training.epochs + 1)]
            curve = epsilon_over(ledger, ends, delta, accountant)
            values = [list(curve.steps), list(curve.epsilons)]
            self.known[key] = [*values, _digest(key, values)]
        return curve

    def save(self) -> None:
        write_atomically(self.cache, json.dumps(self.known) + "\n")

    def _read(self, key: str, row: VariantRow) -> Privacy | None:
        stored = self.known.get(key)
        if not isinstance(stored, list) or len(stored) != 3 or stored[2] != _digest(key, stored[:2]):
            return None
        marks, epsilons = stored[:2]
        sound = isinstance(marks, list) and isinstance(epsilons, list) and len(marks) == len(epsilons) > 0
        if not sound or not all(type(mark) is int for mark in marks) or not all(type(one) is float for one in epsilons):
            return None
        if marks[-1] != row.plan.steps or epsilons != sorted(epsilons) or epsilons[-1] < row.epsilon * (1 - 1e-9):
            return None
        return Privacy(tuple(marks), tuple(epsilons), self.target.delta, self.target.accountant)


def _digest(key: str, values: list[Any]) -> str:
    return hashlib.sha256(json.dumps([key, values]).encode()).hexdigest()
