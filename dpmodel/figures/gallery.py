"""All figures by name."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from dpmodel.figures.curve import Curve
from dpmodel.figures.progress import epsilon_against_step, metric_against_epsilon, noise_and_bound_against_step
from dpmodel.figures.style import ROLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The figure that needs a metric.
METRIC_FIGURE = "metric_against_epsilon"

#: File name of a figure -> the function that draws it.
FIGURES: Mapping[str, Callable[[Sequence[Curve], str, float | None], Figure]] = {
    METRIC_FIGURE: metric_against_epsilon,
    "noise_and_bound_against_step": noise_and_bound_against_step,
    "epsilon_against_step": epsilon_against_step,
}


def draw_all(curves: Sequence[Curve], metric: str | None = "accuracy", size: float | None = None) -> dict[str, Figure]:
    """All figures of ``curves``, by name.

    Args:
        curves: At least one.
        metric: The history column to draw; None leaves out its figure.
        size: Width of the figures in inches.

    Raises:
        ValueError: There are no curves.
    """
    if not curves:
        raise ValueError("curves must hold at least one training, got none")
    chosen = {name: draw for name, draw in FIGURES.items() if metric is not None or name != METRIC_FIGURE}
    return {name: draw(curves, metric or "", size) for name, draw in chosen.items()}


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element whose colours follow the page and whose ids are unique to it.

    Args:
        figure: The figure.
        name: Prefix of its ids, so that one page can hold several figures.
        description: Text alternative for screen readers.
    """
    import matplotlib

    picture = io.StringIO()
    # Text stays text: it is searchable, uses the font of the page and is a tenth of the size of outlines.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(picture, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = picture.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for role, (light, _) in ROLES.items():
        text = re.sub(re.escape(light), f"var(--{role})", text, flags=re.IGNORECASE)
    text = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    opening = rf'<svg viewBox="\1" role="img" aria-label="{escape(description)}">'
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', opening, text, count=1)
    return text.replace("xlink:href", "href").strip()
