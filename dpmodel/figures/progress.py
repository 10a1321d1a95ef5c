"""Lines against the step or against epsilon, one per strand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dpmodel.figures.strand import Strand
from dpmodel.figures.style import LEGEND_COLUMNS, Pen, add_legend, dress, from_zero

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, TALL, LEGEND_ROW = 8.4, 4.2, 0.2


def metric_against_epsilon(strands: Sequence[Strand], metric: str) -> Figure:
    """The metric after each epoch against what had been spent by then; a band holds all seeds."""
    figure, (axes,) = _figure(1, len(strands))
    at = strands[0].privacy
    title = f"Test {metric} against epsilon spent (delta {at.delta:g}, {at.accountant})"
    dress(axes, title, "epsilon spent", f"test {metric}")
    for index, strand in enumerate(strands):
        pen = Pen.of(index, len(strands))
        _bundle(axes, strand.privacy.at(strand.steps), strand.columns(metric), pen, strand.name)
    add_legend(figure, axes)
    return figure


def noise_and_bound_against_step(strands: Sequence[Strand], metric: str) -> Figure:
    """Two panels: the noise multiplier that the schedule states, and the norm bound that was in force."""
    del metric
    figure, (noise, bound) = _figure(2, len(strands))
    dress(noise, "Noise multiplier", "step", "")
    dress(bound, "Norm bound", "step", "")
    for index, strand in enumerate(strands):
        pen = Pen.of(index, len(strands))
        noise.plot(strand.multiplier_steps, strand.multipliers, **pen.line, label=strand.name)
        bounds = strand.columns("norm_bound")
        first = np.full((len(bounds), 1), strand.initial_norm_bound)
        _bundle(bound, np.array([0.0, *strand.steps]), np.hstack([first, bounds]), pen, strand.name)
    for axes in (noise, bound):
        from_zero(axes)
    add_legend(figure, noise)
    return figure


def epsilon_against_step(strands: Sequence[Strand], metric: str) -> Figure:
    """What had been spent after each step."""
    del metric
    figure, (axes,) = _figure(1, len(strands))
    at = strands[0].privacy
    dress(axes, f"Epsilon spent (delta {at.delta:g}, {at.accountant})", "step", "epsilon")
    for index, strand in enumerate(strands):
        pen = Pen.of(index, len(strands))
        axes.plot(strand.privacy.steps, strand.privacy.epsilons, **pen.line, label=strand.name)
    from_zero(axes)
    add_legend(figure, axes)
    return figure


def _figure(panels: int, strands: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDE, TALL + LEGEND_ROW * (strands // LEGEND_COLUMNS)), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _bundle(axes: Axes, x: np.ndarray, rows: np.ndarray, pen: Pen, name: str) -> None:
    """The mean of ``rows`` as a line, with a band from the smallest to the largest."""
    known = ~np.isnan(rows).all(axis=0)
    if not known.any():
        return
    x, rows = x[known], rows[:, known]
    marker = "o" if x.size <= 30 else ""
    axes.plot(x, np.nanmean(rows, axis=0), **pen.line, marker=marker, markersize=3.5, label=name)
    if rows.shape[0] > 1:
        axes.fill_between(x, np.nanmin(rows, axis=0), np.nanmax(rows, axis=0), color=pen.colour, alpha=0.12, lw=0)
