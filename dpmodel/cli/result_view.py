"""The table of what a training reached and spent, for ``dpmodel train`` and ``dpmodel eval``."""

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
    broken_off: str | None = None,
    warnings: Sequence[str] = (),
) -> Table:
    """Metrics and the privacy claim with its conditions, a row each; the caller may add rows.

    Args:
        title: Above the table; None for none.
        metrics: Name to value, over the test data.
        spent: The claim.
        num_examples: Training examples, which delta is to be small against.
        lost: What to say of steps that were lost; None where there are none.
        broken_off: How far a training came that did not reach its end; None for one that did.
        warnings: What must be said of the metrics, a row each below them.
    """
    from rich.table import Table

    table = Table(show_header=False, title=title, title_justify="left")
    for _ in range(2):
        # A terminal that is too narrow breaks a long word; it must not hide a part of it.
        table.add_column(overflow="fold")
    if broken_off is not None:
        table.add_row("training", broken_off)
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
    """What takes the meaning from an epsilon, beside the notes that travel with it.

    Example:
        >>> claim_caveats(3.0, 1e-5, 60_000)
        []
        >>> claim_caveats(float("inf"), 1e-5, 60_000)
        ['epsilon is infinite: this training is NOT private']
    """
    if math.isinf(epsilon):
        return ["epsilon is infinite: this training is NOT private"]
    return [large_delta(delta, num_examples)] if delta * num_examples >= 1 else []
