"""The table of a training's metrics and privacy, for ``dpmodel train`` and ``dpmodel eval``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dpmodel.planning.release import large_delta
from monitors.spent import epsilon_text

if TYPE_CHECKING:
    from rich.table import Table

    from monitors.spent import PrivacySpent


def result_table(
    title: str | None,
    metrics: Mapping[str, float],
    spent: PrivacySpent,
    num_examples: int,
    lost: str | None = None,
    stopped: str | None = None,
    warnings: Sequence[str] = (),
) -> Table:
    """Metrics and the privacy claim with its conditions, one row each; the caller may add rows.

    Args:
        title: Above the table; None for none.
        metrics: Name to value, over the test data.
        spent: The privacy claim.
        num_examples: Number of training examples; delta should be well below its inverse.
        lost: A sentence about lost steps; None if no steps were lost.
        stopped: How far the training got; None if it finished.
        warnings: Warnings about the metrics, one row each below them.
    """
    from rich.table import Table

    table = Table(show_header=False, title=title, title_justify="left")
    for _ in range(2):
        # A narrow terminal may break a long word, but must not hide part of it.
        table.add_column(overflow="fold")
    if stopped is not None:
        table.add_row("training", stopped)
    for name, value in metrics.items():
        table.add_row(f"test {name}", f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}")
    for warning in warnings:
        table.add_row("warning", warning)
    table.add_row("epsilon", f"{epsilon_text(spent.epsilon)} at delta {spent.delta:g} (accountant {spent.accountant})")
    if lost is not None:
        table.add_row("lost steps", lost)
    table.add_row("unit", spent.unit)
    table.add_row("neighbours", spent.relation)
    table.add_row("sampling", spent.sampling)
    for note in (*spent.notes, *claim_caveats(spent.epsilon, spent.delta, num_examples)):
        table.add_row("caveat", note)
    return table


def claim_caveats(epsilon: float, delta: float, num_examples: int) -> list[str]:
    """Reasons why an epsilon means little, in addition to the notes that come with it.

    Example:
        >>> claim_caveats(3.0, 1e-5, 60_000)
        []
        >>> claim_caveats(float("inf"), 1e-5, 60_000)
        ['epsilon is infinite: this training is NOT private']
    """
    if math.isinf(epsilon):
        return ["epsilon is infinite: this training is NOT private"]
    return [large_delta(delta, num_examples)] if delta * num_examples >= 1 else []
