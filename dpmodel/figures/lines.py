"""Lines against the step that show the value after each step and do not interpolate between steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dpmodel.figures.epsilon_curve import Floats, Privacy
from dpmodel.figures.style import Pen, fill, grow, panel_width, say_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dpmodel.training.history import History

#: Most points of a line that marks each of them.
MARKED_POINTS = 30
INFINITE = "epsilon is infinite: there is no guarantee"


def draw_epsilon(axes: Axes, curve: Privacy, pen: Pen, name: str) -> None:
    """Draw epsilon against the step as stairs: up to each point, the line is as high as epsilon at that point.

    Epsilon never falls, so the line is never below what was spent. A straight line between two points would be,
    because epsilon rises most at the beginning.
    """
    epsilons = np.asarray(curve.epsilons, dtype=np.float64)
    finite = np.isfinite(epsilons)
    markers = marks(len(epsilons) - 1) if finite.sum() > 1 else {}
    end = _end_of_guarantee(curve)
    axes.plot(
        np.asarray(curve.steps)[finite],
        epsilons[finite],
        drawstyle="steps-pre",
        label=name if end is None else f"{name}: infinite from step {end:,} on",
        **pen.line,
        **markers,
    )


def note_infinite(axes: Axes, curves: Sequence[Privacy]) -> None:
    """Note in a panel from which step epsilon is infinite, unless the legend says so."""
    ends = [_end_of_guarantee(curve) for curve in curves]
    if all(end is not None and np.isfinite(curve.epsilons).sum() < 2 for end, curve in zip(ends, curves, strict=True)):
        say_in(axes, INFINITE)
    elif len(curves) == 1 and ends[0] is not None:
        note(axes, f"infinite from step {ends[0]:,} on")


def _end_of_guarantee(curve: Privacy) -> int | None:
    """The first step whose epsilon is infinite."""
    pairs = zip(curve.steps, curve.epsilons, strict=True)
    return next((step for step, epsilon in pairs if np.isinf(epsilon)), None)


def note(axes: Axes, text: str) -> None:
    """Add ``text`` under the label of the horizontal axis, and make the figure taller to fit it."""
    label, lines = axes.xaxis.label, fill(text, panel_width(axes), 9.0)
    label.set_text(f"{label.get_text()}\n{lines}")
    grow(axes, lines.count("\n") + 1)


def draw_bounds(axes: Axes, histories: Sequence[History], pen: Pen, name: str, initial: float | None = None) -> None:
    """Draw norm bounds against the step; several trainings are drawn as their mean and a band over all.

    A bound that was recorded after each step is drawn as stairs. If it is known only at the ends of the epochs, only
    those points are drawn.

    Args:
        axes: The panel.
        histories: At least one training.
        pen: Style of the line.
        name: Label of the line.
        initial: Bound of the first step, if known.
    """
    traces = [_trace(history, initial) for history in histories]
    steps = np.unique(np.concatenate([trace[0] for trace in traces]))
    if not all(dense for _, _, dense in traces):
        for index, (known, bounds, _) in enumerate(traces):
            draw_points(axes, known, bounds, pen, "_nolegend_" if index else name)
        return
    rows = np.array([_held(known, bounds, steps) for known, bounds, _ in traces])
    markers = marks(steps.size) if steps.size == 1 else {}
    axes.plot(steps, np.nanmean(rows, axis=0), drawstyle="steps-post", label=name, **pen.line, **markers)
    if len(rows) > 1:
        draw_band(axes, steps, rows, pen, step="post")


def draw_points(axes: Axes, steps: ArrayLike, values: ArrayLike, pen: Pen, name: str) -> None:
    """Draw values that are known at some steps only: as points, with a line only if the value never changes."""
    style = pen.line if np.unique(np.asarray(values)).size == 1 else {"color": pen.colour, "linestyle": ""}
    axes.plot(steps, values, label=name, marker="o", markersize=3.5, **style)


def draw_band(axes: Axes, x: Floats, rows: Floats, pen: Pen, **options: Any) -> None:
    """Draw a band from the smallest to the largest of ``rows``."""
    low, high = np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
    axes.fill_between(x, low, high, color=pen.colour, alpha=0.15, lw=0, **options)


def marks(points: float) -> dict[str, Any]:
    """Arguments of ``Axes.plot`` that mark the points if there are few."""
    return {"marker": "o", "markersize": 3.5} if points <= MARKED_POINTS else {}


def _trace(history: History, initial: float | None) -> tuple[Floats, Floats, bool]:
    """Steps done, the bound after each of them, and whether each bound held until the next step in the list."""
    ends = [(row.step, row.norm_bound) for row in history if row.norm_bound is not None]
    first = [] if initial is None else [(0, initial)]
    if history.norm_bounds:
        known, dense = [*history.norm_bounds, *ends[-1:]], True
    else:
        known = [*first, *ends]
        dense = len({bound for _, bound in known}) == 1
    table = np.array(known, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1], dense


def _held(known: Floats, bounds: Floats, steps: Floats) -> Floats:
    """The bound after each of ``steps``; NaN before the first and after the last known one."""
    places = np.searchsorted(known, steps, side="right") - 1
    found: Floats = bounds[places.clip(min=0)]
    found[(steps < known[0]) | (steps > known[-1])] = np.nan
    return found
