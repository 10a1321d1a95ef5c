"""The figures of a comparison: those of trainings, with a line per variant, and the spread over seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dpmodel.compare.results import ComparisonResult, VariantRow
from dpmodel.figures.curve import Curve, curve_of_plan
from dpmodel.figures.epsilon_curve import MOST_MARKS, Privacy, epsilon_over
from dpmodel.figures.gallery import draw_all
from dpmodel.figures.spread import SpreadRow, spread_over_seeds
from monitors.atomic import write_atomically

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
    """Privacy curves, cached between calls because a tight one takes seconds."""

    def __init__(self, cache: Path, result: ComparisonResult) -> None:
        self.cache = cache
        self.target = result.comparison.definition.target
        try:
            self.known = dict(json.loads(cache.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self.known = {}

    def __call__(self, row: VariantRow) -> Privacy:
        delta, accountant = self.target.delta, self.target.accountant
        ledger = row.plan.ledger()
        key = f"{ledger.digest()} {delta:g} {accountant} {MOST_MARKS} steps"
        if key not in self.known:
            ends = [row.plan.steps_per_epoch * epoch for epoch in range(1, row.plan.config.training.epochs + 1)]
            curve = epsilon_over(ledger, ends, delta, accountant)
            self.known[key] = [list(curve.steps), list(curve.epsilons)]
        steps, epsilons = self.known[key]
        return Privacy(tuple(steps), tuple(epsilons), delta, accountant)

    def save(self) -> None:
        write_atomically(self.cache, json.dumps(self.known) + "\n")
