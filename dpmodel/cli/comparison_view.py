"""The progress view of a comparison or search: one line for the whole and one for each running training."""

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

    from dpmodel.compare.jobs import JobOutcome, PooledJob


class ComparisonView:
    """Shows the progress of a comparison; a context manager. Outside a terminal it shows only failures.

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
            # In a file or pipe it would only leave its last frame, which says nothing.
            disable=not console.is_terminal,
        )
        self._whole = self.progress.add_task("checking", total=None)
        self._tasks: dict[int, TaskID] = {}
        self._steps: dict[int, int] = {}

    def __enter__(self) -> ComparisonView:
        if not self.progress.disable:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.progress.disable:  # some versions of Rich end a disabled view with an empty line
            self.progress.stop()

    def calibrating(self, name: str) -> None:
        """Show which variant is being calibrated."""
        self.progress.update(self._whole, description=f"calibrating {name}")

    def training(self, jobs: Sequence[PooledJob], reused: int) -> None:
        """Show how many trainings are to be done."""
        text = f"{len(jobs)} training{'' if len(jobs) == 1 else 's'}" + (f", {reused} reused" if reused else "")
        self._steps.clear()
        self.progress.update(self._whole, description=text, total=sum(job.steps for job in jobs), completed=0)

    def began(self, job: PooledJob) -> None:
        """Add a line for a training."""
        self._tasks[job.number] = self.progress.add_task(job.label, total=job.steps)

    def stepped(self, job: PooledJob, step: int) -> None:
        """Advance the line of a training, and that of the whole."""
        self._steps[job.number] = step
        if job.number in self._tasks:
            self.progress.update(self._tasks[job.number], completed=step)
        self.progress.update(self._whole, completed=sum(self._steps.values()))

    def held(self, job: PooledJob, holder: str) -> None:
        """Say what the comparison waits for."""
        text = f"waiting for {job.label}, which {holder} trains"
        self.progress.console.print(text, markup=False, soft_wrap=True)

    def ended(self, outcome: JobOutcome) -> None:
        """Remove the line of a training; a failure stays on the screen."""
        task = self._tasks.pop(outcome.job.number, None)
        if task is not None:
            self.progress.remove_task(task)
        if outcome.fault is not None:
            self.progress.console.print(f"failed: {outcome.job.label}: {outcome.fault}", markup=False, soft_wrap=True)
        elif outcome.finished:
            self.stepped(outcome.job, outcome.job.steps)
