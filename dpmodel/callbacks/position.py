"""The position of a run, as callbacks print it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpmodel.training.run import Run


def step_in_epoch(run: Run) -> int:
    """Number of the last step within the current epoch of this fit, counted from 1 (0 before the first step)."""
    done = run.step - run.first_step
    return (done - 1) % run.steps_per_epoch + 1 if done > 0 else 0


def epoch_and_step_of_life(run: Run) -> tuple[int, int]:
    """Epoch and step in it over the whole life of the model, both counted from 1.

    They continue to count in a second ``fit`` or after a resume, so that names made from them are unique.
    """
    last = max(run.step - 1, 0)
    return last // run.steps_per_epoch + 1, last % run.steps_per_epoch + 1
