"""The table of a comparison as a figure: a dot per seed, means, intervals and paired differences."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpmodel.figures.style import INK, MUTED, Pen, dress, letter, make_panels, panel_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dpmodel.compare.statistics import Summary

#: Height of a row and of what is around them, in inches.
_ROW, _FRAME = 0.48, 1.5
#: Height of a line of a variant's name, in inches; letters in a line, and the part of a panel that they take, at most.
_LINE, _NAME, _NAMES = 0.15, 22, 0.35


@dataclass(frozen=True)
class SpreadRow:
    """One variant.

    Args:
        name: Its name.
        values: Seed to result.
        summary: Mean and interval of the results.
        difference: Paired difference to the baseline; None for the baseline.
    """

    name: str
    values: Mapping[int, float]
    summary: Summary
    difference: Summary | None


def spread_over_seeds(rows: Sequence[SpreadRow], metric: str, baseline: str, size: float | None = None) -> Figure:
    """Two panels that share their rows: the result of each seed, and the difference to the baseline.

    Args:
        rows: One per variant, drawn from top to bottom.
        metric: Name of the metric.
        baseline: Name of the variant that the others are compared with.
        size: Width of the figure in inches.
    """
    from matplotlib.ticker import MaxNLocator

    figure, (values, differences) = make_panels(2, size)
    width, stacked = figure.get_size_inches()[0], 2 if panel_width(values) == figure.get_size_inches()[0] else 1
    letters = min(_NAME, int(_NAMES * panel_width(values) / letter(9.0)))
    names = [textwrap.fill(row.name, letters) for row in rows]
    tall = max(_ROW, _LINE * (1 + max(name.count("\n") + 1 for name in names)))
    figure.set_size_inches(width, stacked * (_FRAME + tall * len(rows)))
    beside = letter(9.0) * max(len(line) for name in names for line in name.splitlines())
    dress(values, "Each seed, mean, 95 % interval", f"test {metric}", "", beside)
    label = f"difference of test {metric}, 95 % interval"
    dress(differences, f"Paired difference to {baseline}", label, "", beside if stacked > 1 else 0.0)
    differences.axvline(0.0, color=MUTED, lw=1.2)
    for index, row in enumerate(rows):
        pen = Pen.of(index)
        values.scatter(
            list(row.values.values()), [index - 0.24] * len(row.values), s=20, color=pen.colour, alpha=0.6, lw=0
        )
        _interval(values, index, row.summary, pen)
        if row.difference is not None:
            _interval(differences, index, row.difference, pen)
    for axes in (values, differences):
        axes.set_yticks(range(len(rows)), names if axes is values or stacked > 1 else [""] * len(rows))
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5 if panel_width(axes) >= 4 else 3))
    return figure


def _interval(axes: Axes, height: int, summary: Summary, pen: Pen) -> None:
    if summary.low is not None and summary.high is not None:
        axes.plot([summary.low, summary.high], [height, height], color=pen.colour, lw=1.9, solid_capstyle="round")
    axes.plot([summary.mean], [height], marker="D", markersize=5.5, color=pen.colour)
