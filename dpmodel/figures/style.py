"""Colours, axes and panels of all figures. Colours have roles, so that one drawing serves light and dark pages."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from monitors import checks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE, INK, MUTED, GRID = "#ffffff", "#1f2328", "#59636e", "#d8dee4"
# Okabe and Ito's colours, which colour-blind readers can distinguish; their yellow is too light for lines.
BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07d00", "#56b4e9"

#: Colours of the lines of a figure.
SERIES = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)
#: Most names side by side in a legend.
LEGEND_COLUMNS = 4
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

#: Role in the style sheet of a page -> colour on a light and on a dark page.
ROLES: Mapping[str, tuple[str, str]] = {
    "ink": (INK, "#e6edf3"),
    "muted": (MUTED, "#9ea7b3"),
    "grid": (GRID, "#343b44"),
    "series-0": (BLUE, "#58a6ff"),
    "series-1": (ORANGE, "#ff9152"),
    "series-2": (GREEN, "#3fc79a"),
    "series-3": (PURPLE, "#e39ac4"),
    "series-4": (AMBER, "#e3b341"),
    "series-5": (SKY, "#9fd3f5"),
}
#: Background of a figure, on a light and on a dark page.
BACKGROUND = (PAGE, "#0d1117")
#: Name of a style -> index of its colour in a role.
STYLES: Mapping[str, int] = {"light": 0, "dark": 1}

#: Smallest and largest width of a figure that can be asked for, in inches.
NARROWEST, WIDEST = 2.5, 40.0
#: Widths of a panel in inches: below the first, text is smaller; below the second, panels are stacked.
_SMALL_TEXT, _STACKED = 3.9, 2.5
#: Width of a figure in inches by its number of panels, and for more panels than that.
_DEFAULT_WIDTHS = {1: 7.0, 2: 8.6}
_DEFAULT_WIDTH = 10.8
_PANEL_COLUMNS = 3
_LEGEND_ROW = 0.2
_TICK_COLOURS = frozenset({"color", "labelcolor", "grid_color"})
#: Smallest part of [0, 1] that the axis of a metric shows.
_LEAST_RANGE = 0.1


@dataclass(frozen=True)
class Pen:
    """How one curve is drawn: by colour, then by dashes, so that there can be more curves than colours.

    Lines often coincide (a fixed bound, one target). Earlier ones are wider, so that all remain visible.
    """

    colour: str
    dashes: Any
    width: float = 1.8

    @classmethod
    def of(cls, index: int, count: int = 1) -> Pen:
        """The pen of curve number ``index`` of ``count``.

        Example:
            >>> Pen.of(0) == Pen.of(1), Pen.of(0).colour == Pen.of(len(SERIES)).colour
            (False, True)
        """
        width = 1.5 + 1.9 * max(count - 1 - index, 0) / max(count - 1, 1)
        return cls(SERIES[index % len(SERIES)], _DASHES[index // len(SERIES) % len(_DASHES)], width)

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of ``Axes.plot``."""
        return {"color": self.colour, "linestyle": self.dashes, "linewidth": self.width}


def make_panels(count: int, size: float | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels, side by side as far as the width allows.

    Args:
        count: At least 1.
        size: Width of the figure in inches, 2.5 to 40; default: as wide as the panels need.

    Raises:
        ValueError: ``size`` is out of range.

    Example:
        >>> [tuple(panel.get_subplotspec().get_gridspec().get_geometry()) for panel in make_panels(2, 3.4)[1]]
        [(2, 1), (2, 1)]
    """
    from matplotlib.figure import Figure

    width = _DEFAULT_WIDTHS.get(count, _DEFAULT_WIDTH) if size is None else require_size(size)
    columns = max(1, min(count, _PANEL_COLUMNS, int(width / _STACKED)))
    rows = -(-count // columns)
    tall = min(max(0.62 * width / columns, 2.2), 4.2)
    figure = Figure(figsize=(width, rows * tall), layout="constrained", facecolor=PAGE)
    # Without padding, the title of a stacked panel touches the axis label above it.
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)  # type: ignore[union-attr, call-arg]
    panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for panel in panels[count:]:
        panel.remove()
    return figure, panels[:count]


def require_size(size: float) -> float:
    """``size`` as a float.

    Raises:
        ValueError: It is not a number, or out of range.
    """
    checks.positive(size=size)
    if not NARROWEST <= size <= WIDEST:
        raise ValueError(
            f"size must be the width of the figure in inches, from {NARROWEST:g} to {WIDEST:g}, got {size!r}; a column "
            "of a paper is about 3.4 wide, a page about 7"
        )
    return float(size)


def require_style(style: str) -> str:
    """Return ``style`` if it is known.

    Raises:
        ValueError: Unknown style; the nearest is suggested.
    """
    checks.one_of(tuple(STYLES), style=style)
    return style


def dress(axes: Axes, title: str, x_label: str, y_label: str, margin: float = 0.0) -> None:
    """Set title, labels, grid and colours of a panel; long texts are wrapped.

    Args:
        axes: The panel.
        title: Title of the panel.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        margin: Inches that long tick labels take on the left.
    """
    small = panel_width(axes) < _SMALL_TEXT
    title_size, label_size, tick_size = (9.5, 8.5, 8.0) if small else (11.0, 9.5, 9.0)
    width = panel_width(axes) - margin
    axes.set_title(fill(title, width, title_size), fontsize=title_size, color=INK, loc="left", pad=8)
    axes.set_xlabel(fill(x_label, width, label_size), fontsize=label_size, color=MUTED)
    axes.set_ylabel(y_label, fontsize=label_size, color=MUTED)
    axes.set_facecolor("none")
    axes.tick_params(colors=MUTED, labelsize=tick_size, length=0)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)


def panel_width(axes: Axes) -> float:
    """Width of a panel including its labels, in inches."""
    place = axes.get_subplotspec()
    width = float(axes.figure.get_size_inches()[0])  # type: ignore[union-attr]
    return width if place is None else width / place.get_gridspec().ncols


def add_legend(figure: Figure, axes: Axes) -> None:
    """Add a legend under the figure, which grows to fit it; a single curve gets none."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) < 2:
        return
    width, height = figure.get_size_inches()
    columns = _legend_columns(labels, width)
    lines = [fill(label, width - 0.7, 9.0) for label in labels]
    legend = figure.legend(handles, lines, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    rows = max(sum(line.count("\n") + 1 for line in lines[start::columns]) for start in range(columns))
    figure.set_size_inches(width, height + _LEGEND_ROW * rows)
    for text in legend.get_texts():
        text.set_color(INK)


def add_panel_legend(axes: Axes) -> None:
    """Add a legend under a panel; a single line gets none."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) < 2:
        return
    columns = _legend_columns(labels, panel_width(axes))
    under = (0.5, -0.22)
    legend = axes.legend(
        handles, labels, loc="upper center", bbox_to_anchor=under, ncols=columns, frameon=False, fontsize=8
    )
    for text in legend.get_texts():
        text.set_color(INK)


def grow(axes: Axes, lines: int) -> None:
    """Make the figure of a panel taller by ``lines`` of small text."""
    figure = axes.get_figure(root=True)
    if figure is not None:
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.16 * lines)


def say_in(axes: Axes, text: str) -> None:
    """Write ``text`` in the middle of a panel that has nothing to show, and remove its ticks."""
    axes.text(
        0.5,
        0.5,
        fill(text, 0.8 * panel_width(axes), 9.0),
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=9,
        color=MUTED,
    )
    axes.set_xticks([])
    axes.set_yticks([])


def from_zero(axes: Axes) -> None:
    """Start both axes at zero, and write steps as integers with thousands separators."""
    begin_at_zero(axes)
    integer_ticks(axes)


def begin_at_zero(axes: Axes) -> None:
    """Start the vertical axis at zero and leave room above the highest value, so that no marker is cut off."""
    highest = axes.dataLim.y1
    if math.isfinite(highest) and highest > 0:
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.06 * highest))
    else:
        axes.set_ylim(bottom=0)


def integer_ticks(axes: Axes) -> None:
    """Start the horizontal axis at zero, with a few integer ticks."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(left=0)
    ticks = 8 if panel_width(axes) >= _SMALL_TEXT else 5
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=ticks, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def whole_range(axes: Axes) -> None:
    """Limit the vertical axis to [0, 1] for a metric in that range, and do not magnify tiny differences."""
    values = [value for line in axes.get_lines() for value in np.asarray(line.get_ydata(), dtype=float).tolist()]
    known = [value for value in values if math.isfinite(value)]
    if not known or min(known) < 0 or max(known) > 1:
        return
    low, high = axes.get_ylim()
    middle, half = (low + high) / 2, max((high - low) / 2, _LEAST_RANGE / 2)
    room = 0.04 * half  # markers at the limits are not cut off
    axes.set_ylim(max(middle - half, -room), min(middle + half, 1 + room))


def repaint(figure: Figure, style: str) -> None:
    """Change the colours of a light ``figure`` to those of ``style``.

    Raises:
        ValueError: Unknown style.
    """
    from matplotlib.colors import to_hex

    place = STYLES[require_style(style)]
    if not place:
        return
    pairs = {**ROLES, "page": BACKGROUND}.values()
    darker = {light.lower(): colours[place] for colours in pairs for light in [colours[0]]}
    figure.draw_without_rendering()  # creates ticks and their labels
    figure.set_facecolor(darker[PAGE])
    for artist in figure.findobj(include_self=False):
        for name in ("color", "markerfacecolor", "markeredgecolor", "facecolor", "edgecolor"):
            before = getattr(artist, f"get_{name}", None)
            after = getattr(artist, f"set_{name}", None)
            if before is not None and after is not None:
                _exchange(before, after, darker, to_hex)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        # For ticks that the next drawing creates if the figure has a different size.
        colours = {name: value for name, value in axis.get_tick_params().items() if name in _TICK_COLOURS}
        axis.set_tick_params(**{name: darker.get(to_hex(value), value) for name, value in colours.items()})


def _exchange(before: Any, after: Any, darker: Mapping[str, str], to_hex: Any) -> None:
    from matplotlib.colors import to_rgba_array

    colours = to_rgba_array(before())
    names = [to_hex(colour) for colour in colours]
    if any(name in darker for name, colour in zip(names, colours, strict=True) if colour[3] > 0):
        new = to_rgba_array([darker.get(name, name) for name in names])
        new[:, 3] = colours[:, 3]
        after(new if len(new) > 1 else tuple(new[0]))


def _legend_columns(labels: Sequence[str], width: float) -> int:
    longest = max(map(len, labels)) * letter(9.0) + 0.7
    return max(1, min(len(labels), LEGEND_COLUMNS, int(width / longest)))


def fill(text: str, width: float, size: float) -> str:
    """``text`` wrapped to ``width`` inches, in letters of ``size`` points."""
    return textwrap.fill(text, max(int((width - 0.55) / letter(size)), 8))


def letter(size: float) -> float:
    """Width of a letter of ``size`` points in inches; slightly above the mean."""
    return 0.53 * size / 72
