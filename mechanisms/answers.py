"""The cost of an answer about the data: recorded before the answer is computed, and remembered by this process."""

from __future__ import annotations

import weakref

from mechanisms.rng import SecureGenerator
from monitors.events import PrivacyEvent
from monitors.ledger import Ledger

#: Note on a ledger if a user's seed determines the noise of its answers.
REPRODUCIBLE = "reproducible query noise: no guarantee"
#: Ledgers of this process on which answers were recorded.
_ASKED: list[weakref.ref[Ledger]] = []
#: Those that are not forgotten even if nothing else refers to them.
_KEPT: list[Ledger] = []


def asked_ledgers() -> list[Ledger]:
    """The ledgers on which answers were recorded in this process, and which still exist."""
    _ASKED[:] = [known for known in _ASKED if known() is not None]
    return [ledger for known in _ASKED if (ledger := known()) is not None]


def remember_asked(ledger: Ledger, *, keep: bool = False) -> None:
    """Add a ledger to those on which answers were recorded.

    Args:
        ledger: The ledger.
        keep: Keep it even if nothing else refers to it: a training on data that were changed with the answer must not
            forget its cost.
    """
    if keep and not any(known is ledger for known in _KEPT):
        _KEPT.append(ledger)
    if not any(known is ledger for known in asked_ledgers()):
        _ASKED.append(weakref.ref(ledger))


def holds_statistics(ledger: Ledger) -> bool:
    """Whether statistics of all rows were recorded on this ledger in this process (``keep`` of ``remember_asked``)."""
    return any(known is ledger for known in _KEPT)


def forget_asked(ledger: Ledger) -> None:
    """Remove a ledger from those of ``asked_ledgers``: it is that of a training, which states its cost itself."""
    _ASKED[:] = [known for known in _ASKED if known() is not ledger]
    _KEPT[:] = [known for known in _KEPT if known is not ledger]


def require_ledger(ledger: Ledger) -> None:
    """Refuse anything but a ledger.

    Raises:
        ValueError: It is not a ledger.
    """
    if not isinstance(ledger, Ledger):
        raise ValueError(f"ledger must be a monitors.Ledger, got {ledger!r} of type {type(ledger).__name__}")


def record_answer(ledger: Ledger, event: PrivacyEvent, generator: SecureGenerator) -> None:
    """Record the cost of one answer; call it before its noise is drawn.

    Args:
        ledger: Where it is recorded.
        event: What the answer costs.
        generator: Where its noise will come from; a reproducible one leaves a note.

    Raises:
        ValueError: ``ledger`` is not a ledger.
    """
    require_ledger(ledger)
    ledger.record(event)
    remember_asked(ledger)
    if generator.reproducible:
        ledger.add_note(REPRODUCIBLE)
