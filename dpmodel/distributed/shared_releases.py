"""What happens between two steps on one rank and counts for all: stops, and releases of callbacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from monitors.errors import DistributedError
from monitors.events import PrivacyEvent, ViolationEvent
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from dpmodel.training.run import Run


class SharedReleases:
    """Keeps the ledgers of all ranks equal while callbacks record releases and stop the training.

    Guarantee: only rank 0 releases something besides the steps, so its journal announces every release before it is
    made, and every ledger charges it. On other ranks, such a release is refused before it is made.

    Args:
        run: The run; its ledger must be equal on all ranks.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._found = Ledger()  # since the ranks have last joined
        self._step: PrivacyEvent | None = None
        self._joining = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Use around the training and all calls of its callbacks."""
        run = self._run
        if run.ranks.size == 1:
            yield
            return
        with run.ledger.announcing(self._record):
            yield

    @contextmanager
    def step(self) -> Iterator[None]:
        """Use around a step, which records its event on every rank."""
        if self._run.ranks.size > 1:
            self._step = self._run.event(self._run.step)
        try:
            yield
        finally:
            self._step = None

    def agree(self, asked_before: bool = False) -> tuple[bool, bool]:
        """Call it before each step: what the callbacks of one rank have done counts for all.

        A stop on one rank stops all, for the same reason.

        Args:
            asked_before: Whether the stop was asked for before the callbacks of the step were called.

        Returns:
            Whether to stop, and ``asked_before`` of the rank whose reason counts. A signal may have set a reason on
            this rank since the ranks met; it counts at the next call.
        """
        run, ranks = self._run, self._run.ranks
        if ranks.size == 1:
            return run.stop_reason is not None, asked_before
        facts = ranks.meet("the next step", run.stop_reason is not None, len(self._found))
        if facts[0][1]:
            self._join()
        if not any(fact[0] for fact in facts):
            return False, asked_before
        wishes = ranks.gather((run.stop_reason, asked_before))
        run.stop_reason, asked_before = next(wish for wish in wishes if wish[0] is not None)
        return True, asked_before

    def settle(self) -> None:
        """Call it after the last callbacks: join the notes of all ranks and the releases of rank 0."""
        if self._run.ranks.size > 1:
            self._join()
            join_notes(self._run)

    def _join(self) -> None:
        found, self._found = self._run.ranks.share(self._found), Ledger()
        if not self._run.ranks.first:
            self._joining = True
            try:
                self._run.ledger.extend(found)
            finally:
                self._joining = False

    def _record(self, event: PrivacyEvent, count: int) -> None:
        if self._joining or isinstance(event, ViolationEvent):  # violations reach all ranks with the failure
            return
        if self._step is not None and count == 1 and event == self._step:
            self._step = None
            return
        if not self._run.ranks.first:
            raise DistributedError(
                f"a callback was about to release something of the data on rank {self._run.ranks.rank} ({event!r}). "
                "Release on rank 0 only, where it is recorded on the disk first: set first_rank_only = True in the "
                "class of the callback or, if every rank needs the value, call run.ranks.once(function) on every rank"
            )
        self._found.record(event, count)


def join_notes(run: Run) -> None:
    """Put the notes of every rank on every ledger: a callback or an engine may have added one on one rank only."""
    if run.ranks.size > 1:
        for note in dict.fromkeys(note for notes in run.ranks.gather(run.ledger.notes) for note in notes):
            run.ledger.add_note(note)
