"""A rank that resumes what rank 0 has read, and writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpmodel.callbacks.base import CallbackList
    from dpmodel.saving.state import TrainingState
    from dpmodel.training.loop import TrainingLoop
    from dpmodel.training.run import Run
    from monitors.ledger import Ledger


class Follower:
    """Stands for the ``ReleaseRecord`` of rank 0 on the other ranks.

    Rank 0 alone announces a step in its journal. The others need not wait for that: the noise of the step comes from
    rank 0, which draws it after the journal is on the disk.

    It restores weights, counters and mechanisms of a resumed training, and its ledger with the steps that were lost.

    Args:
        run: The run of this rank.
        state: The state that rank 0 resumes from; None for a new training.
        ledger: The ledger of rank 0.
        saves_state: Whether rank 0 saves the state, and so finishes a step before Ctrl-C ends the training.
    """

    def __init__(self, run: Run, state: TrainingState | None, ledger: Ledger, *, saves_state: bool) -> None:
        self.state, self.saves_state = state, saves_state
        if state is not None:
            state.checkpoint.restore(run.network)
            run.ledger.extend(ledger)
            run.load_state_dict(state.run)

    def restore(self, run: Run, listeners: CallbackList) -> None:
        """Done when it is built."""

    def before_release(self, loop: TrainingLoop) -> None:
        """Rank 0 writes."""

    def between_steps(self, loop: TrainingLoop, *, rest: bool = False) -> None:
        """Restore callbacks, schedules and the optimizer when the training begins."""
        del rest
        state, self.state = self.state, None
        if state is not None:
            state.resume(loop)
