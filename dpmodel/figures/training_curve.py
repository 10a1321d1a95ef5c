"""The figure of one training: a panel each for metrics, losses, epsilon, noise multiplier and norm bound."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from dpmodel.callbacks.watched_metric import direction
from dpmodel.figures.epsilon_curve import Privacy
from dpmodel.figures.files import require_format, save_figure
from dpmodel.figures.lines import draw_bounds, draw_epsilon, draw_points, marks, note_infinite
from dpmodel.figures.style import (
    INK,
    Pen,
    add_panel_legend,
    begin_at_zero,
    dress,
    from_zero,
    integer_ticks,
    make_panels,
    repaint,
    require_style,
    whole_range,
)
from monitors.spent import epsilon_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dpmodel.training.history import History

TRAINING_LOSS = "training loss (not private)"


def draw_history(
    history: History,
    path: str | os.PathLike[str] | None = None,
    *,
    privacy: Privacy | None = None,
    style: str = "light",
    size: float | None = None,
) -> Figure:
    """Draw the curves of ``history``; panels without data are left out.

    Args:
        history: At least one epoch.
        path: File to save the figure to: ``.png``, ``.svg`` or ``.pdf``; None does not save it.
        privacy: Epsilon over the steps; default: the epsilon at the end of each epoch, drawn over the whole epoch.
        style: ``"light"`` or ``"dark"``.
        size: Width of the figure in inches.

    Raises:
        ValueError: The history is empty, the extension of ``path`` or the style is unknown, or ``size`` is out of
            range.
    """
    require_style(style)
    if path is not None:
        require_format(path)
    if not len(history):
        raise ValueError("the history is empty: there is nothing to plot before the first epoch has finished")
    drawn = list(_panels(history, privacy))
    figure, panels = make_panels(max(len(drawn), 1), size)
    for axes, draw in zip(panels, drawn, strict=False):
        draw(axes)
    figure.suptitle(
        _headline(history, privacy, figure.get_size_inches()[0]), fontsize=9.5, color=INK, x=0.012, ha="left"
    )
    repaint(figure, style)
    if path is not None:
        save_figure(figure, path)
    return figure


def _panels(history: History, privacy: Privacy | None) -> Iterator[Callable[[Axes], None]]:
    better = [name for name in history.metric_names if direction(name, "auto") > 0]
    losses = [name for name in history.metric_names if name not in better]
    curves = [(name, history.column(name)) for name in losses]
    if _known(history.column("loss")):
        curves.append((TRAINING_LOSS, history.column("loss")))
    if better:
        yield lambda axes: _quality(axes, history, [(name, history.column(name)) for name in better])
    if curves:
        yield lambda axes: _losses(axes, history, curves)
    if privacy is not None or _known(history.column("epsilon")):
        yield lambda axes: _epsilon(axes, history, privacy)
    if _known(history.column("noise_multiplier")):
        yield lambda axes: _noise(axes, history)
    if _known(history.column("norm_bound")):
        yield lambda axes: _bound(axes, history)


def _quality(axes: Axes, history: History, curves: Sequence[tuple[str, Sequence[float | None]]]) -> None:
    alone = curves[0][0] if len(curves) == 1 else "metric"
    dress(axes, "Validation metrics" if len(curves) > 1 else f"Validation {alone}", "epoch", alone)
    _lines(axes, history, curves)
    whole_range(axes)


def _losses(axes: Axes, history: History, curves: Sequence[tuple[str, Sequence[float | None]]]) -> None:
    dress(axes, "Loss", "epoch", "loss per example")
    _lines(axes, history, curves)
    if all(value is None or value >= 0 for _, values in curves for value in values):
        begin_at_zero(axes)


def _lines(axes: Axes, history: History, curves: Sequence[tuple[str, Sequence[float | None]]]) -> None:
    epochs = history.column("epoch")
    for index, (name, values) in enumerate(curves):
        pen = Pen.of(index, len(curves))
        line = {**pen.line, "linestyle": ":"} if name == TRAINING_LOSS else pen.line
        finite = [value if value is not None and math.isfinite(value) else math.nan for value in values]
        label = f"{name} (not finite)" if all(map(math.isnan, finite)) else name
        axes.plot(epochs, finite, label=label, **line, **marks(len(epochs)))
    integer_ticks(axes)
    add_panel_legend(axes)


def _epsilon(axes: Axes, history: History, privacy: Privacy | None) -> None:
    at = "" if history.delta is None else f" at delta {history.delta:g}"
    dress(axes, "Privacy spent", "step", f"epsilon{at}")
    curve = _of_epochs(history) if privacy is None else privacy
    draw_epsilon(axes, curve, Pen.of(0), "epsilon")
    from_zero(axes)
    note_infinite(axes, [curve])


def _noise(axes: Axes, history: History) -> None:
    dress(axes, "Noise", "step", "noise multiplier")
    known = [(row.step, row.noise_multiplier) for row in history if row.noise_multiplier is not None]
    steps, multipliers = zip(*known, strict=True)
    draw_points(axes, steps, multipliers, Pen.of(0), "noise multiplier")
    from_zero(axes)


def _bound(axes: Axes, history: History) -> None:
    dress(axes, "Clipping", "step", "norm bound (L2)")
    draw_bounds(axes, [history], Pen.of(0), "norm bound")
    from_zero(axes)


def _of_epochs(history: History) -> Privacy:
    known = [(row.step, row.epsilon) for row in history if row.epsilon is not None]
    steps, epsilons = zip(*known, strict=True)
    return Privacy((0, *steps), (0.0, *epsilons), history.delta or 0.0, "")


def _headline(history: History, privacy: Privacy | None, width: float) -> str:
    last = history.epochs[-1]
    epsilon = last.epsilon if privacy is None else privacy.epsilons[-1]
    parts = [f"{_counted(len(history), 'epoch')}, {_counted(last.step, 'step')}"]
    parts += [f"{name} {value:.4g}" for name, value in last.metrics.items()]
    if epsilon is not None:
        at = "" if history.delta is None else f" at delta {history.delta:g}"
        parts.append(f"epsilon {epsilon_text(epsilon)}{at}")
    lines, room = [parts[0]], width / 0.075
    for part in parts[1:]:
        joined = f"{lines[-1]}  |  {part}"
        lines = [*lines[:-1], joined] if len(joined) <= room else [*lines, part]
    return "\n".join(lines)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _known(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)
