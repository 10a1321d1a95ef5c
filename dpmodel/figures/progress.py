"""Lines against the step or against epsilon, one per curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dpmodel.figures.curve import Curve
from dpmodel.figures.lines import INFINITE, draw_band, draw_bounds, draw_epsilon, marks, note, note_infinite
from dpmodel.figures.style import Pen, add_legend, dress, from_zero, make_panels, say_in, whole_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def metric_against_epsilon(curves: Sequence[Curve], metric: str, size: float | None = None) -> Figure:
    """The metric after each epoch against the epsilon spent by then, with a band over all seeds."""
    figure, (axes,) = make_panels(1, size)
    at = curves[0].privacy
    name = metric.removeprefix("valid_")
    dress(
        axes, f"Test {name} against privacy spent", f"epsilon at delta {at.delta:g} ({at.accountant})", f"test {name}"
    )
    left_out = [_progress(axes, curve, metric, Pen.of(i, len(curves))) for i, curve in enumerate(curves)]
    axes.set_xlim(left=0)
    whole_range(axes)
    if not any(np.size(line.get_xdata()) for line in axes.get_lines()):
        say_in(axes, INFINITE if any(left_out) else f"no {metric} was measured")
    elif any(left_out):
        note(axes, f"{sum(left_out)} epochs with infinite epsilon are not drawn")
    add_legend(figure, axes)
    return figure


def noise_and_bound_against_step(curves: Sequence[Curve], metric: str, size: float | None = None) -> Figure:
    """Two panels against the step: the scheduled noise multiplier, and the norm bound in use."""
    del metric
    figure, (noise, bound) = make_panels(2, size)
    dress(noise, "Noise", "step", "noise multiplier")
    dress(bound, "Clipping", "step", "norm bound (L2)")
    for index, curve in enumerate(curves):
        pen = Pen.of(index, len(curves))
        noise.plot(
            curve.multiplier_steps,
            curve.multipliers,
            drawstyle="steps-post",
            label=curve.name,
            **pen.line,
            **(marks(1) if len(curve.multipliers) == 1 else {}),
        )
        draw_bounds(bound, curve.histories, pen, curve.name, curve.initial_norm_bound)
    for axes in (noise, bound):
        from_zero(axes)
    add_legend(figure, noise)
    return figure


def epsilon_against_step(curves: Sequence[Curve], metric: str, size: float | None = None) -> Figure:
    """Epsilon after each step."""
    del metric
    figure, (axes,) = make_panels(1, size)
    at = curves[0].privacy
    dress(axes, f"Privacy spent ({at.accountant})", "step", f"epsilon at delta {at.delta:g}")
    for index, curve in enumerate(curves):
        draw_epsilon(axes, curve.privacy, Pen.of(index, len(curves)), curve.name)
    from_zero(axes)
    note_infinite(axes, [curve.privacy for curve in curves])
    add_legend(figure, axes)
    return figure


def _progress(axes: Axes, curve: Curve, metric: str, pen: Pen) -> int:
    """Draw the mean over the seeds with a band from the lowest to the highest; return the number of omitted epochs."""
    rows, epsilons = curve.columns(metric), curve.privacy.at(curve.steps)
    known = ~np.isnan(rows).all(axis=0)
    drawn = known & np.isfinite(epsilons)
    x, rows = epsilons[drawn], rows[:, drawn]
    mean = np.nanmean(rows, axis=0) if drawn.any() else np.empty(0)
    axes.plot(x, mean, label=curve.name, **pen.line, **marks(x.size))
    if rows.shape[0] > 1 and drawn.any():
        draw_band(axes, x, rows, pen)
    return int((known & ~drawn).sum())
