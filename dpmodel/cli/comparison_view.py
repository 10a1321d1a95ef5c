"""The one progress view of a comparison: a line for the whole, a line for each training that is running."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from rich.console import Console

    from dpmodel.compare.jobs import Job, JobOutcome


class ComparisonView:
    """Shows how far a comparison is; a context manager. Off a terminal it shows faults only.

    Args:
        console: Where to show it.
    """

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            # Into a file or a pipe it would write its last picture, and say nothing.
            disable=not console.is_terminal,
        )
        self._whole = self.progress.add_task("checking", total=None)
        self._tasks: dict[int, TaskID] = {}
        self._steps: dict[int, int] = {}

    def __enter__(self) -> ComparisonView:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def calibrating(self, name: str) -> None:
        """Show which variant is being solved for."""
        self.progress.update(self._whole, description=f"calibrating {name}")

    def training(self, jobs: Sequence[Job], reused: int) -> None:
        """Show how many trainings are ahead."""
        text = f"{len(jobs)} training{'' if len(jobs) == 1 else 's'}" + (f", {reused} reused" if reused else "")
        self.progress.update(self._whole, description=text, total=sum(job.steps for job in jobs), completed=0)

    def began(self, job: Job) -> None:
        """Add a line for a training."""
        self._tasks[job.number] = self.progress.add_task(job.label, total=job.steps)

    def stepped(self, job: Job, step: int) -> None:
        """Move the line of a training, and the whole."""
        self._steps[job.number] = step
        if job.number in self._tasks:
            self.progress.update(self._tasks[job.number], completed=step)
        self.progress.update(self._whole, completed=sum(self._steps.values()))

    def ended(self, outcome: JobOutcome) -> None:
        """Take the line of a training away; a fault stays on the screen."""
        task = self._tasks.pop(outcome.job.number, None)
        if task is not None:
            self.progress.remove_task(task)
        if outcome.fault is not None:
            self.progress.console.print(f"failed: {outcome.job.label}: {outcome.fault}", markup=False, soft_wrap=True)
        elif not outcome.interrupted:
            self.stepped(outcome.job, outcome.job.steps)
