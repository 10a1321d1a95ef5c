"""The folder that a comparison leaves behind, and the names of the files in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpmodel.runs.folder import RunFolder


@dataclass(frozen=True)
class ComparisonFolder:
    """Files of one comparison, by what they hold.

    Args:
        path: The folder.

    Example:
        >>> ComparisonFolder(Path("runs/noise")).run("fixed", 1).path.as_posix()
        'runs/noise/runs/fixed/seed-1'
    """

    path: Path

    @property
    def multipliers(self) -> Path:
        """Noise multipliers that were solved for."""
        return self.path / "multipliers.json"

    @property
    def curves(self) -> Path:
        """Privacy curves that were computed for the figures."""
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
        """Everything, for machines."""
        return self.path / "comparison.json"

    @property
    def html(self) -> Path:
        """The report with its figures inside."""
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

    def ledgers(self) -> list[Path]:
        """Ledgers of all trainings ever made in here, those that were broken off and moved aside included."""
        return sorted(self.runs.glob("*/*/ledger.json"))
