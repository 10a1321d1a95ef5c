"""A progress bar with loss, metric, epsilon and time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dpmodel.callbacks.base import Callback
from dpmodel.callbacks.silence import say_nothing
from monitors import checks
from monitors.errors import DPModelError
from monitors.spent import epsilon_text

if TYPE_CHECKING:
    from rich.console import Console

    from dpmodel.training.run import Run

#: Terminals of fewer columns show the figures without the bar itself.
WIDE_COLUMNS = 110


class ProgressBar(Callback):
    """One line that moves: epoch, step, loss, latest metric, epsilon, time left.

    It is redrawn at intervals and computes epsilon rarely, so that it does not slow down a training of many short
    steps; an epsilon older than the displayed step is shown with its own step. At the end of each epoch, the epsilon
    is that of the history. Terminals of fewer than ``WIDE_COLUMNS`` columns leave out the delta, the bar and the epoch.
    The loss shown is not private. A run shows one bar, that of its first ``ProgressBar``, and none if it is silent. If
    the output is a file or a pipe, it writes one line per epoch.

    Args:
        refresh_seconds: Time between two redraws, positive.
        epsilon_every_n_steps: Steps between two epsilons; 0 shows none. An epsilon that is slow to compute is
            updated more rarely, so that it takes at most a fiftieth of the time.
        console: A ``rich`` console; None writes to the terminal.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self, refresh_seconds: float = 0.2, epsilon_every_n_steps: int = 50, console: Console | None = None
    ) -> None:
        checks.positive(refresh_seconds=refresh_seconds)
        checks.non_negative_int(epsilon_every_n_steps=epsilon_every_n_steps)
        self.refresh_seconds = refresh_seconds
        self.epsilon_every_n_steps = epsilon_every_n_steps
        self._console = console
        self._shown: Console | None = None
        self._bar: Any = None
        self._printer: Callable[[str], None] | None = None
        self._redraw_at = 0.0
        self._loss = ""
        self._epsilon = _EpsilonText(epsilon_every_n_steps)

    def on_train_epoch_begin(self, run: Run) -> None:
        """Draw the bar before the first epoch, and print the run's messages above it."""
        # Not when training begins: if a callback refuses to begin, the screen must be untouched.
        if self._shown is not None or run.printer is say_nothing or _belongs_to_a_bar(run.printer):
            return
        self._shown = _console() if self._console is None else self._console
        if self._shown.is_terminal or self._shown.is_jupyter:
            self._bar = _bar(self._shown)
            self._bar.start()
            self._task = self._bar.add_task("", total=run.planned_steps - run.first_step, text="")
        self._printer, run.printer = run.printer, self._print_above
        self._epsilon = _EpsilonText(self.epsilon_every_n_steps)
        self._redraw_at = 0.0

    def on_train_step_end(self, run: Run) -> None:
        """Redraw, if it is time."""
        now = time.monotonic()
        if now >= self._redraw_at:
            self._redraw(run)
            self._redraw_at = time.monotonic() + self.refresh_seconds

    def on_eval_end(self, run: Run) -> None:
        """Show the fresh metrics."""
        self._redraw(run)

    def on_train_epoch_end(self, run: Run) -> None:
        """Show the epsilon that was just computed for the history."""
        if self._shown is None:
            return
        if len(run.history) and run.history[-1].step == run.step:
            self._epsilon.take(run.step, run.history[-1].epsilon, run.history.delta)
        if self._bar is None:
            self._print_above(_epoch_line(run, self._epsilon.parts(run, with_delta=True)))
        self._redraw(run)

    def on_train_end(self, run: Run) -> None:
        """Leave the last state on the screen and give the printer back."""
        if self._shown is None:
            return
        if self._bar is not None:
            self._epsilon.age(run)
            self._redraw(run)
            self._bar.stop()
        self._bar = self._shown = None
        if self._printer is not None:
            run.printer = self._printer

    def _redraw(self, run: Run) -> None:
        if self._bar is None:
            return
        wide = _is_wide(self._bar.console)
        parts = [f"epoch {run.epoch}/{run.epochs}"] if wide else []
        loss = run.recent_loss
        if loss is not None and not math.isnan(loss):  # that of an empty draw is not a number
            self._loss = f"loss {loss:.3f}"
        parts += [self._loss] if self._loss else []
        parts += _metric_texts(run)
        parts += self._epsilon.parts(run, with_delta=wide)
        self._bar.update(self._task, completed=run.step - run.first_step, text="  ".join(parts))
        self._bar.refresh()

    def _print_above(self, text: str) -> None:
        assert self._shown is not None
        self._shown.print(text, markup=False, highlight=False, soft_wrap=True)


class _EpsilonText:
    """The epsilon that is shown: asked for again after enough steps, and never for more than 2 % of the time."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._step: int | None = None
        self._not_before = 0.0
        self._epsilon: str | None = None
        self._delta = ""

    def age(self, run: Run) -> None:
        """Recompute the next text, unless it already belongs to this step."""
        if self._step != run.step:
            self._step, self._not_before = None, 0.0

    def take(self, step: int, epsilon: float | None, delta: float | None) -> None:
        """Show this epsilon, which was computed elsewhere."""
        if self._every and epsilon is not None and delta is not None:
            self._step, self._epsilon, self._delta = step, f"epsilon {epsilon_text(epsilon)}", f" (delta {delta:g})"

    def parts(self, run: Run, *, with_delta: bool) -> list[str]:
        """The text, as one part or none; an older epsilon is given with its step, counted as the bar counts."""
        self._refresh(run)
        if self._epsilon is None or self._step is None:
            return []
        age = "" if self._step == run.step else f" at step {self._step - run.first_step}"
        return [self._epsilon + age + (self._delta if with_delta else "")]

    def _refresh(self, run: Run) -> None:
        begun = time.monotonic()
        due = self._step is None or run.step - self._step >= self._every
        if self._every and run.step and due and begun >= self._not_before:
            self._step = run.step
            self._epsilon, self._delta = _epsilon_texts(run)
            self._not_before = time.monotonic() + 50 * (time.monotonic() - begun)


def _epsilon_texts(run: Run) -> tuple[str, str]:
    try:
        spent = run.privacy_spent()
    except DPModelError as error:
        # A display must not end a training that has spent its budget; the report will say what is wrong.
        return f"epsilon not known ({type(error).__name__})", ""
    return f"epsilon {epsilon_text(spent.epsilon)}", f" (delta {spent.delta:g})"


def _epoch_line(run: Run, epsilon: list[str]) -> str:
    """``epoch 2/10  step 40/200  loss 0.412  accuracy 0.8750  epsilon 1.203 (delta 1e-05)  3.1 s``."""
    done, planned = run.step - run.first_step, run.planned_steps - run.first_step
    parts = [f"epoch {run.epoch}/{run.epochs}", f"step {done:,}/{planned:,}"]
    last = run.history[-1] if len(run.history) else None
    if last is not None and last.loss is not None:
        parts.append(f"loss {last.loss:.3f}")
    parts += [*_metric_texts(run), *epsilon]
    return "  ".join(parts if last is None or last.seconds is None else [*parts, f"{last.seconds:.1f} s"])


def _metric_texts(run: Run) -> list[str]:
    return [f"{'valid loss' if name == 'loss' else name} {value:.4f}" for name, value in run.metrics.items()]


def _console() -> Console:
    from rich.console import Console

    return Console()


def _bar(console: Console) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    columns: list[ProgressColumn] = [MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left")]
    if _is_wide(console):
        columns.insert(1, BarColumn(bar_width=20))
    # Only the figures may take a second line; else a narrow terminal would squeeze the step out of sight.
    columns.append(TextColumn("{task.fields[text]}", table_column=Column(no_wrap=False)))
    return Progress(*columns, console=console, auto_refresh=False)


def _belongs_to_a_bar(printer: Callable[[str], None]) -> bool:
    return isinstance(getattr(printer, "__self__", None), ProgressBar)


def _is_wide(console: Console) -> bool:
    return console.width >= WIDE_COLUMNS
