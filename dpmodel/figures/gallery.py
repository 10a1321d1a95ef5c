"""All figures by name, drawn and saved."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from dpmodel._files import write_atomically
from dpmodel.figures.progress import epsilon_against_step, metric_against_epsilon, noise_and_bound_against_step
from dpmodel.figures.strand import Strand
from dpmodel.figures.style import ROLES
from dpmodel.training_curves import DOTS_PER_INCH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")

#: File name of a figure -> what draws it.
FIGURES: Mapping[str, Callable[[Sequence[Strand], str], Figure]] = {
    "metric_against_epsilon": metric_against_epsilon,
    "noise_and_bound_against_step": noise_and_bound_against_step,
    "epsilon_against_step": epsilon_against_step,
}


def draw_all(strands: Sequence[Strand], metric: str = "accuracy") -> dict[str, Figure]:
    """Every figure of ``strands``, by name.

    Args:
        strands: At least one.
        metric: The history column to draw.

    Raises:
        ValueError: There are no strands.
    """
    if not strands:
        raise ValueError("strands must hold at least one training, got none")
    return {name: draw(strands, metric) for name, draw in FIGURES.items()}


def save_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write every figure as PNG and SVG into ``folder`` and return the paths."""
    written = []
    for name, figure in figures.items():
        for kind in FORMATS:
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, dpi=DOTS_PER_INCH, facecolor="white")
            written.append(folder / f"{name}.{kind}")
            write_atomically(written[-1], picture.getvalue())
    return written


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element whose colours follow the page and whose ids are its own.

    Args:
        figure: The figure.
        name: Prefix of its ids, so that several figures share one page.
        description: What it shows, for those who cannot see it.
    """
    import matplotlib

    picture = io.StringIO()
    # Text stays text: it is searchable, takes the font of the page and is a tenth of the size of outlines.
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
