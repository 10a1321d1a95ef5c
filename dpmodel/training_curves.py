"""The picture of a training: metrics and loss, epsilon, noise multiplier and bound."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel._files import write_atomically
from dpmodel.callbacks.watched_metric import direction
from monitors.accountant import epsilon_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dpmodel.history import History

FORMATS = ("png", "svg", "pdf")
DOTS_PER_INCH = 150
# Okabe and Ito's colours, which the colour-blind tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6B6B6B"


def draw_history(history: History, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw the curves of ``history``; panels without data are left out.

    Args:
        history: At least one epoch.
        path: Where to save the picture too: ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        ValueError: The history is empty, or the ending of ``path`` is unknown.
    """
    from matplotlib.figure import Figure

    kind = None if path is None else _format(path)
    if not len(history):
        raise ValueError("the history is empty: there is nothing to plot before the first epoch has ended")
    panels = [panel for panel in (_quality_panel(history), _epsilon_panel(history), _noise_panel(history)) if panel]
    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _style(axes)
        panel(axes)
    figure.suptitle(_headline(history), fontsize=11, x=0.012, ha="left")
    if path is not None and kind is not None:
        picture = io.BytesIO()
        figure.savefig(picture, format=kind, dpi=DOTS_PER_INCH)
        write_atomically(path, picture.getvalue())
    return figure


def _quality_panel(history: History) -> Callable[[Axes], None] | None:
    rising = [name for name in history.metric_names if direction(name, "auto") > 0]
    falling = [name for name in history.metric_names if name not in rising]
    has_loss = _known(history.column("loss"))
    if not rising and not falling and not has_loss:
        return None

    def draw(axes: Axes) -> None:
        axes.set_title("Validation metrics and training loss" if has_loss else "Validation metrics")
        axes.set_xlabel("epoch")
        epochs = history.column("epoch")
        for name, colour in zip(rising, _cycle((BLUE, GREEN, PURPLE), len(rising)), strict=True):
            _line(axes, epochs, history.column(name), colour, name)
        loss_axes = _second(axes) if rising and (has_loss or falling) else axes
        for name in falling:
            _line(loss_axes, epochs, history.column(name), ORANGE, name)
        if has_loss:
            _line(loss_axes, epochs, history.column("loss"), ORANGE, "training loss (not private)", style=":")
        if has_loss or falling:
            loss_axes.set_ylabel("loss", color=ORANGE)
            loss_axes.set_ylim(bottom=0)
        _legend(axes, loss_axes)

    return draw


def _epsilon_panel(history: History) -> Callable[[Axes], None] | None:
    epsilons = history.column("epsilon")
    if not _known(epsilons):
        return None

    def draw(axes: Axes) -> None:
        at = "" if history.delta is None else f" at delta = {history.delta:g}"
        axes.set_title(f"Privacy spent{at}")
        axes.set_xlabel("step")
        axes.set_ylabel("epsilon")
        _line(axes, history.column("step"), epsilons, BLUE, "epsilon")
        axes.set_ylim(bottom=0)

    return draw


def _noise_panel(history: History) -> Callable[[Axes], None] | None:
    multipliers, bounds = history.column("noise_multiplier"), history.column("norm_bound")
    if not _known(multipliers) and not _known(bounds):
        return None

    def draw(axes: Axes) -> None:
        steps = history.column("step")
        axes.set_title("Noise multiplier and norm bound")
        axes.set_xlabel("step")
        bound_axes = _second(axes)
        drawn = (
            (axes, multipliers, GREEN, "noise multiplier", "-", 1.1),
            (bound_axes, bounds, PURPLE, "norm bound", "--", 1.4),
        )
        for one, values, colour, name, style, room in drawn:
            _line(one, steps, values, colour, name, style=style)
            one.set_ylabel(name, color=colour)
            # Room of different size above each, or two constants would lie on one another.
            highest = max((value for value in values if value is not None and math.isfinite(value)), default=0.0)
            one.set_ylim(0, highest * room if highest > 0 else 1)
        _legend(axes, bound_axes)

    return draw


def _line(axes: Axes, x: Sequence[float], y: Sequence[float | None], colour: str, label: str, style: str = "-") -> None:
    values = [math.nan if value is None or math.isinf(value) else value for value in y]
    marker = "o" if len(values) <= 30 else ""
    axes.plot(x, values, style, color=colour, label=label, marker=marker, markersize=3.5, linewidth=1.8)


def _second(axes: Axes) -> Axes:
    other = axes.twinx()
    other.spines["top"].set_visible(False)
    other.tick_params(colors=GREY, labelsize=9)
    return other


def _style(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.grid(True, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["top"].set_visible(False)
    axes.tick_params(colors=GREY, labelsize=9)
    axes.title.set_fontsize(10)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 4, 5, 10]))


def _legend(*all_axes: Axes) -> None:
    handles: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if len(handles) > 1:
        # Below the panel, where it can hide no curve of either axis.
        options = {"bbox_to_anchor": (0.5, -0.17), "ncols": min(len(handles), 3), "fontsize": 8, "frameon": False}
        all_axes[0].legend(list(handles.values()), list(handles), loc="upper center", **options)


def _headline(history: History) -> str:
    last = history.epochs[-1]
    parts = [f"{len(history)} epochs, {last.step:,} steps"]
    parts += [f"{name} {value:.4g}" for name, value in last.metrics.items()]
    if last.epsilon is not None:
        at = "" if history.delta is None else f" at delta {history.delta:g}"
        parts.append(f"epsilon {epsilon_text(last.epsilon)}{at}")
    return "   |   ".join(parts)


def _format(path: str | os.PathLike[str]) -> str:
    ending = Path(path).suffix.lower().lstrip(".")
    if ending not in FORMATS:
        raise ValueError(f"a picture is saved as {', '.join('.' + name for name in FORMATS)}, got {os.fspath(path)!r}")
    return ending


def _known(values: Sequence[Any]) -> bool:
    return any(value is not None for value in values)


def _cycle(colours: Sequence[str], count: int) -> list[str]:
    return [colours[index % len(colours)] for index in range(count)]
