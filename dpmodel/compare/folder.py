"""The folder of a comparison, and the names of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpmodel.runs.folder import RunFolder


@dataclass(frozen=True)
class ComparisonFolder:
    """The files of one comparison.

    Args:
        path: The folder.

    Example:
        >>> ComparisonFolder(Path("runs/noise")).run("fixed", 1).path.as_posix()
        'runs/noise/runs/fixed/seed-1'
    """

    path: Path

    @property
    def multipliers(self) -> Path:
        """Calibrated noise multipliers."""
        return self.path / "multipliers.json"

    @property
    def curves(self) -> Path:
        """Privacy curves computed for the figures."""
        return self.path / "privacy_curves.json"

    @property
    def csv(self) -> Path:
        """One line per run."""
        return self.path / "comparison.csv"

    @property
    def markdown(self) -> Path:
        """The table of variants."""
        return self.path / "comparison.md"

    @property
    def json(self) -> Path:
        """All results as JSON."""
        return self.path / "comparison.json"

    @property
    def html(self) -> Path:
        """The report, with embedded figures."""
        return self.path / "report.html"

    @property
    def figures(self) -> Path:
        """The figures as files."""
        return self.path / "figures"

    @property
    def runs(self) -> Path:
        """The run folders."""
        return self.path / "runs"

    def run(self, slug: str, seed: int) -> RunFolder:
        """The run folder of a variant and a seed."""
        return RunFolder(self.runs / slug / f"seed-{seed}")

    def withdraw(self) -> None:
        """Remove the results before further trainings: they state an epsilon without those."""
        for path in (self.csv, self.markdown, self.json, self.html):
            path.unlink(missing_ok=True)

    def ledgers(self) -> list[Path]:
        """Ledgers of all trainings ever made in this folder, including interrupted ones that were moved aside."""
        return sorted(self.runs.glob("*/*/ledger.json"))
