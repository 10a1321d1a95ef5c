"""Colours and axes that all figures share, and the roles that let one drawing serve a light and a dark page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpmodel.training_curves import BLUE, GREEN, ORANGE, PURPLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2328", "#59636e", "#d8dee4"
AMBER, SKY = "#b07d00", "#56b4e9"

#: Colours of the strands. Okabe and Ito's, which the colour-blind tell apart; their yellow is too light for lines.
SERIES = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)
#: Strands beside each other in a legend.
LEGEND_COLUMNS = 4
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

#: Role in the style sheet of a page -> colour in a light and in a dark one.
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


@dataclass(frozen=True)
class Pen:
    """How one strand is drawn: colour first, then dashes, so that more strands than colours stay apart.

    Lines often run on top of each other (a fixed bound, one target): the earlier ones are wider, so that all show.
    """

    colour: str
    dashes: Any
    width: float = 1.8

    @classmethod
    def of(cls, index: int, count: int = 1) -> Pen:
        """The pen of strand number ``index`` of ``count``.

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


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Title, labels, grid and colours of one panel."""
    axes.set_title(title, fontsize=11, color=INK, loc="left", pad=10)
    axes.set_xlabel(x_label, fontsize=9.5, color=MUTED)
    axes.set_ylabel(y_label, fontsize=9.5, color=MUTED)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)


def add_legend(figure: Figure, axes: Axes) -> None:
    """One legend under the figure, where it hides nothing; none for a single strand."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) < 2:
        return
    columns = min(len(handles), LEGEND_COLUMNS)
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_color(INK)


def from_zero(axes: Axes) -> None:
    """Both axes begin at zero; steps are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
