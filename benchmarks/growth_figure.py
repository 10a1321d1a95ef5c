"""The figure of ``growth.py``: a log-log panel with plain and private training for each series, and one for memory."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from dpmodel.figures.files import save_figure
from dpmodel.figures.gallery import inline_svg
from dpmodel.figures.style import BACKGROUND, ROLES, Pen, add_legend, dress

if TYPE_CHECKING:
    from growth import Point, Series
    from matplotlib.axes import Axes

NAME = "growth"
DESCRIPTION = (
    "Time of plain and of differentially private training against batch size, width, depth, sequence length and number "
    "of examples, and peak memory against batch size, on logarithmic axes"
)
FONTS = '"DejaVu Sans", system-ui, "Segoe UI", Roboto, sans-serif'
COLUMNS, WIDE, TALL = 3, 3.6, 3.0


def draw(chosen: Mapping[str, Series]) -> Figure:
    """A panel for each series, and one for memory against the batch size if it was measured."""
    panels: list[Callable[[Axes], None]] = [_time_panel(series) for series in chosen.values()]
    if "batch" in chosen:
        panels.append(_memory_panel(chosen["batch"]))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    room = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.12)
    figure = Figure(figsize=(WIDE * columns, TALL * rows + 0.3), layout=room)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        panel(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    add_legend(figure, grid[0])
    return figure


def save(figure: Figure, folder: Path) -> None:
    """Save ``growth.svg``, which follows the reader's light or dark setting, and ``growth.png`` on white."""
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(figure, folder / f"{NAME}.png")
    (folder / f"{NAME}.svg").write_text(standalone_svg(figure, NAME, DESCRIPTION), encoding="utf-8")


def standalone_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as a standalone SVG file, with its colours for light and dark pages."""
    picture = inline_svg(figure, name, description)
    light, dark = (
        " ".join(f"--{role}: {colours[index]};" for role, colours in {**ROLES, "page": BACKGROUND}.items())
        for index in (0, 1)
    )
    style = (
        f"<style>svg {{ {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }} "
        f"text {{ font-family: {FONTS}; }}</style>"
    )
    background = '<rect width="100%" height="100%" style="fill: var(--page)"/>'
    width, height = figure.get_size_inches() * 72
    opening = rf'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}"\1>{style}{background}'
    return re.sub(r"<svg([^>]*)>", opening, picture, count=1) + "\n"


def _time_panel(series: Series) -> Callable[[Axes], None]:
    unit, factor = ("s per epoch", 1.0) if series.workload is None else ("ms per step", 1e3)
    return lambda axes: _lines(
        axes,
        (series.title, series.axis, unit),
        series.points,
        [factor * statistics.median(point.plain) for point in series.points],
        [factor * statistics.median(point.private) for point in series.points],
    )


def _memory_panel(series: Series) -> Callable[[Axes], None]:
    return lambda axes: _lines(
        axes,
        ("Peak memory (LeNet5)", series.axis, "MiB per step"),
        series.points,
        [point.plain_mib or 0.0 for point in series.points],
        [point.private_mib or 0.0 for point in series.points],
    )


def _lines(
    axes: Axes, labels: tuple[str, str, str], points: Sequence[Point], plain: list[float], private: list[float]
) -> None:
    dress(axes, *labels)
    x = [point.x for point in points]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for index, (name, y) in enumerate((("plain", plain), ("dpmodel", private))):
        axes.plot(x, y, **Pen.of(index).line, marker="o", markersize=4, label=name)
    axes.set_xticks(x, [_short(value) for value in x])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _short(value: int) -> str:
    return f"{value}" if value < 1000 else f"{value / 1000:.0f}k"
