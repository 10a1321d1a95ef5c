"""The report of an attack: as a table for the terminal, JSON, Markdown and one figure."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpmodel.attack.limits import Limit
from dpmodel.attack.roc import RocCurve
from dpmodel.audit.lines import FAMILY_LEVEL
from dpmodel.audit.report import CONTRADICTION, OK
from monitors.atomic import PRIVATE_FILE, write_atomically
from monitors.spent import epsilon_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Version of the JSON form.
FORMAT = 1

#: What an attack does not show, for every report.
LIMITS = (
    "These figures are risk indicators of the attacks that were made. An attack that fails proves nothing: a stronger "
    "one may succeed, up to what the ledger allows. One that succeeds on average says little about a single person."
)

#: For whom the report is.
PRIVATE = (
    "This report contains statistics of private data that no epsilon covers. It is for the holder of the data: do not "
    "publish it where the epsilon must cover everything that is published."
)

_HEADING = ("attack", "figure", "reached", "95 % interval", "ledger allows", "")

#: Smallest false-positive rate of a figure.
_LEAST_RATE = 1e-4


@dataclass(frozen=True)
class Measure:
    """A figure of an attack beside what the ledger allows.

    Args:
        method: The attack.
        name: ``"AUC"``, or ``"TPR at FPR 1 %"`` and the like.
        value: The figure.
        low: Lower limit of its 95 % interval.
        high: Upper limit of it.
        limit: Largest value that the ledger allows; 1 if it allows everything.
        contradicts: Whether the figure is above the limit beyond chance.
    """

    method: str
    name: str
    value: float
    low: float
    high: float
    limit: float
    contradicts: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Scored:
    """The scores of one attack on one or several networks.

    Args:
        method: The attack.
        knows: What its attacker knows.
        references: Number of reference networks for each attacked one.
        scores: Score of each attacked example, shape (networks, examples).
        included: Which examples each network was trained on, same shape.
    """

    method: str
    knows: str
    references: int
    scores: Floats
    included: Bools

    @cached_property
    def roc(self) -> RocCurve:
        """The curve of all networks together."""
        return RocCurve(self.scores[self.included], self.scores[~self.included])

    def measures(self, rates: tuple[float, ...], limit: Limit, level: float) -> Iterator[Measure]:
        """The figures.

        Args:
            rates: False-positive rates.
            limit: What the ledger allows.
            level: Probability of a contradiction by chance, of each figure.
        """
        beyond = self.roc.auc_interval(1.0 - 2 * level)[0] > limit.area
        yield Measure(self.method, "AUC", self.roc.auc, *self.roc.auc_interval(), limit.area, beyond)
        for rate in rates:
            point, allowed = self.roc.at(rate), limit.true_positive_rate(rate)
            false_positives, true_positives = point.certain_rates(1.0 - level)
            beyond = true_positives > limit.true_positive_rate(false_positives)
            name = f"TPR at FPR {100 * rate:g} %"
            yield Measure(self.method, name, point.true_positive_rate, *point.interval(), allowed, beyond)


@dataclass(frozen=True)
class AttackReport:
    """What the attacks have reached, beside what the ledger allows.

    Args:
        scored: The scores of each attack.
        rates: False-positive rates.
        limit: What the ledger allows.
        epsilon: Epsilon of the ledger; of several networks, the largest.
        delta: Its delta.
        description: What was attacked, by part.
        notes: What a reader must know.
        names: A name for each attacked example.
        seconds: Duration.
        one_population: Whether each example was a member by a fair coin, so that members and others are alike.
    """

    scored: tuple[Scored, ...]
    rates: tuple[float, ...]
    limit: Limit
    epsilon: float
    delta: float
    description: dict[str, str]
    notes: tuple[str, ...]
    names: list[str] = field(repr=False)
    seconds: float
    one_population: bool = False

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """All figures of all attacks."""
        level = FAMILY_LEVEL / (len(self.scored) * (1 + len(self.rates)))
        return tuple(measure for scored in self.scored for measure in scored.measures(self.rates, self.limit, level))

    def measure(self, method: str, name: str = "AUC") -> Measure:
        """One figure.

        Raises:
            ValueError: The report has no such figure.
        """
        for measure in self.measures:
            if (measure.method, measure.name) == (method, name):
                return measure
        known = ", ".join(f"{measure.method} {measure.name}" for measure in self.measures)
        raise ValueError(f"the report has no {name!r} of {method!r}; it has {known}")

    @property
    def contradictions(self) -> tuple[Measure, ...]:
        """Figures above what the ledger allows, beyond chance."""
        return tuple(measure for measure in self.measures if measure.contradicts)

    @property
    def ok(self) -> bool:
        """Whether no figure contradicts the ledger."""
        return not self.contradictions

    @property
    def limits(self) -> str:
        """What an attack does not show, and for whom the report is."""
        return f"{LIMITS} {PRIVATE}"

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        claim = f"epsilon {epsilon_text(self.epsilon, 2)} at delta {self.delta:g}"
        if not self.limit.exists:
            return f"the ledger limits no attack ({claim})"
        if self.ok:
            return f"no attack contradicts the ledger ({claim})"
        names = "; ".join(f"{measure.method}: {measure.name}" for measure in self.contradictions)
        text = f"an attack reaches more than the ledger allows ({claim}): {names}"
        return text if self.one_population else f"{text}. Or members and others come from different populations"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the scores, for JSON."""
        return {
            "format": FORMAT,
            "ok": self.ok,
            "verdict": self.verdict,
            "epsilon": self.epsilon if np.isfinite(self.epsilon) else "inf",
            "delta": self.delta,
            "false_alarm_probability": FAMILY_LEVEL,
            "attacked": self.description,
            "attacks": {one.method: {"knows": one.knows, "references": one.references} for one in self.scored},
            "measures": [measure.to_dict() for measure in self.measures],
            "notes": list(self.notes),
            "limits": self.limits,
            "seconds": self.seconds,
        }

    def to_markdown(self) -> str:
        """The report as a page."""
        rows = [" | ".join(cells) for cells in (_HEADING, ("---",) * 6, *map(self._cells, self.measures))]
        table = "\n".join(f"| {row} |" for row in rows)
        attacked = "\n".join(f"- {name}: {words}" for name, words in self.description.items())
        knows = "\n".join(f"- {one.method}: {one.knows}" for one in self.scored)
        notes = "\n".join(f"- {note}" for note in self.notes)
        return (
            f"# Membership inference\n\n**{self.verdict[0].upper()}{self.verdict[1:]}.**\n\n{PRIVATE}\n\n{table}\n\n"
            f"## What was attacked\n\n{attacked}\n\n## What each attacker knows\n\n{knows}\n\n"
            f"## What an attack does not show\n\n{LIMITS}\n" + (f"\n{notes}\n" if notes else "")
        )

    def table(self) -> Table:
        """The report as a table for the terminal."""
        from rich import box
        from rich.table import Table

        found = Table(box=box.SIMPLE_HEAD, title="membership inference", title_justify="left", collapse_padding=True)
        for index, name in enumerate(_HEADING):
            found.add_column(name, justify="right" if index in (2, 3, 4) else "left", no_wrap=index not in (3, 4))
        for measure in self.measures:
            found.add_row(*self._cells(measure), style="bold red" if measure.contradicts else None)
        return found

    def figure(self, size: float | None = None) -> Figure:
        """ROC curves on logarithmic axes, beside what the ledger allows.

        Args:
            size: Width in inches.
        """
        from dpmodel.figures.style import make_panels

        found, (axes,) = make_panels(1, size)
        self._draw(axes)
        return found

    def save(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Write ``attack.json``, ``attack.md`` and ``attack.png``, private to the user; returns the files."""
        from dpmodel.figures.files import save_figure

        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"attack.{ending}" for ending in ("json", "md", "png")]
        write_atomically(paths[0], json.dumps(self.to_dict(), indent=1) + "\n")
        write_atomically(paths[1], self.to_markdown())
        save_figure(self.figure(), paths[2], mode=PRIVATE_FILE)
        return paths

    def save_scores(self, path: str | os.PathLike[str]) -> Path:
        """Write the score of every example as CSV, private to the user: it says of each how exposed it is."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("attack", "network", "example", "member", "score"))
        for one in self.scored:
            for network, (scores, included) in enumerate(zip(one.scores, one.included, strict=True)):
                for name, member, score in zip(self.names, included, scores, strict=True):
                    writer.writerow((one.method, network, name, int(member), f"{score:.6g}"))
        write_atomically(path, text.getvalue())
        return Path(path)

    def _cells(self, measure: Measure) -> tuple[str, ...]:
        allowed = f"<= {measure.limit:.4f}" if self.limit.exists else "everything"
        verdict = CONTRADICTION if measure.contradicts else OK if self.limit.exists else ""
        interval = f"{measure.low:.4f} to {measure.high:.4f}"
        return measure.method, measure.name, f"{measure.value:.4f}", interval, allowed, verdict

    def _draw(self, axes: Axes) -> None:
        from dpmodel.figures.style import INK, MUTED, Pen, add_panel_legend, dress

        least = max(_LEAST_RATE, 1.0 / max(one.roc.outside.size for one in self.scored))
        rates = np.geomspace(least, 1.0, 120)
        for index, one in enumerate(self.scored):
            false_positives, true_positives = one.roc.points()
            label = f"{one.method} (AUC {one.roc.auc:.3f})"
            axes.plot(false_positives, true_positives, label=label, **Pen.of(index, len(self.scored)).line)
        if self.limit.exists:
            allowed = [self.limit.true_positive_rate(float(rate)) for rate in rates]
            axes.plot(rates, allowed, color=INK, linestyle="--", label="the ledger allows")
        axes.plot(rates, rates, color=MUTED, linewidth=0.8, label="guessing")
        axes.set(xscale="log", yscale="log", xlim=(least, 1.0), ylim=(least, 1.1))
        dress(axes, "membership inference", "false-positive rate", "true-positive rate")
        add_panel_legend(axes)
