"""The report of an audit: as a table for the terminal, JSON, Markdown and one figure."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpmodel.audit.lines import FAMILY_LEVEL, Line
from monitors.atomic import SHARED_FILE, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

#: Version of the JSON form.
FORMAT = 1

OK, CONTRADICTION = "ok", "CONTRADICTION"

#: What an audit does not show, for every report.
LIMITS = (
    "An audit can refute the ledger but cannot prove it: a run without a contradiction may still have a fault that "
    "these measurements do not see. The bounds hold for this attack, and the true epsilon lies between the largest of "
    "them and the ledger's."
)


@dataclass(frozen=True)
class AuditReport:
    """What an audit has measured.

    Args:
        lines: The measurements.
        epsilon: Epsilon of the audited training's ledger.
        delta: Its delta.
        description: What was audited, by part.
        scores: The score of each canary, shape (m,).
        included: Whether it was in the data, shape (m,).
        seconds: Duration.
        run_digest: Digest of the ledger of the run whose configuration was audited; None if no run was named.
    """

    lines: tuple[Line, ...]
    epsilon: float
    delta: float
    description: dict[str, str]
    scores: NDArray[np.float64]
    included: NDArray[np.bool_]
    seconds: float
    run_digest: str | None = None

    @property
    def contradictions(self) -> tuple[Line, ...]:
        """The lines that contradict the ledger; a correct run has any with a probability of at most 0.00002."""
        return tuple(line for line in self.lines if self.contradicts(line))

    @property
    def ok(self) -> bool:
        """Whether no line contradicts the ledger."""
        return not self.contradictions

    def contradicts(self, line: Line) -> bool:
        """Whether this line contradicts the ledger."""
        return line.contradicts(len(self.lines))

    def line(self, name: str) -> Line:
        """The line of that name.

        Raises:
            ValueError: There is none.
        """
        for line in self.lines:
            if name == line.name:
                return line
        raise ValueError(f"the report has no line {name!r}; it has {', '.join(line.name for line in self.lines)}")

    @property
    def limits(self) -> str:
        """What an audit does not show."""
        return LIMITS

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if self.ok:
            return f"no line contradicts the ledger (epsilon {self.epsilon:.2f} at delta {self.delta:g})"
        names = "; ".join(f"{line.section}: {line.name}" for line in self.contradictions)
        return f"the run contradicts its ledger (epsilon {self.epsilon:.2f} at delta {self.delta:g}): {names}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the scores, for JSON."""
        return {
            "format": FORMAT,
            "ok": self.ok,
            "verdict": self.verdict,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "false_alarm_probability": FAMILY_LEVEL,
            "audited": self.description,
            "lines": [{**asdict(line), "contradicts": self.contradicts(line)} for line in self.lines],
            "limits": LIMITS,
            "seconds": self.seconds,
            "run_ledger_digest": self.run_digest,
        }

    def to_markdown(self) -> str:
        """The report as a page."""
        rows = [
            " | ".join(cells) for cells in (self._heading, ("---",) * 6, *(self._cells(line) for line in self.lines))
        ]
        audited = "\n".join(f"- {name}: {words}" for name, words in self.description.items())
        table = "\n".join(f"| {row} |" for row in rows)
        return (
            f"# Audit\n\n**{self.verdict[0].upper()}{self.verdict[1:]}.**\n\n{table}\n\n## What was audited\n\n"
            f"{audited}\n\n## What an audit does not show\n\n{LIMITS}\n"
        )

    def table(self) -> Table:
        """The report as a table for the terminal."""
        from rich import box
        from rich.table import Table

        found = Table(box=box.SIMPLE_HEAD, title="audit", title_justify="left", caption_justify="left")
        for index, name in enumerate(self._heading):
            found.add_column(name, justify="right" if index in (2, 3) else "left")
        for line in self.lines:
            found.add_row(*self._cells(line), style="bold red" if self.contradicts(line) else None)
        return found

    def figure(self, size: float | None = None) -> Figure:
        """Scores of the canaries, and the bounds beside the ledger's epsilon.

        Args:
            size: Width in inches.
        """
        from dpmodel.figures.style import make_panels

        found, (left, right) = make_panels(2, size)
        self._draw_scores(left)
        self._draw_bounds(right)
        return found

    def save(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Write ``audit.json``, ``audit.md`` and ``audit.png`` into a folder, which is made; returns the files."""
        from dpmodel.figures.files import save_figure

        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"audit.{ending}" for ending in ("json", "md", "png")]
        write_atomically(paths[0], json.dumps(self.to_dict(), indent=1) + "\n", mode=SHARED_FILE)
        write_atomically(paths[1], self.to_markdown(), mode=SHARED_FILE)
        save_figure(self.figure(), paths[2])
        return paths

    _heading = ("section", "line", "measured", "ledger", "", "details")

    def _cells(self, line: Line) -> tuple[str, ...]:
        bad = self.contradicts(line)
        stated = f"{line.relation} {line.stated:.4g}"
        return line.section, line.name, f"{line.value:.4g}", stated, CONTRADICTION if bad else OK, line.note

    def _draw_scores(self, axes: Axes) -> None:
        from dpmodel.figures.style import SERIES, add_panel_legend, dress

        edges = np.histogram_bin_edges(self.scores, bins=40).tolist()
        for index, (label, chosen) in enumerate((("not in the data", ~self.included), ("in the data", self.included))):
            axes.hist(self.scores[chosen], bins=edges, color=SERIES[index], alpha=0.6, label=label)
        dress(axes, "canaries", "score (log-likelihood ratio)", "canaries")
        add_panel_legend(axes)

    def _draw_bounds(self, axes: Axes) -> None:
        from dpmodel.figures.style import INK, SERIES, add_panel_legend, dress

        bounds = [line for line in self.lines if line.section == "bounds"]
        names = [line.name.removeprefix("epsilon, ") for line in bounds]
        axes.bar(names, [line.value for line in bounds], color=SERIES[0], width=0.6, label="lower bound")
        axes.axhline(self.epsilon, color=INK, linestyle="--", label="ledger")
        dress(axes, "epsilon", "", f"epsilon at delta {self.delta:g}")
        add_panel_legend(axes)
