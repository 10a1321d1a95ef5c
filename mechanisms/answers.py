"""The cost of an answer about the data: recorded before the answer is computed, and remembered by this process."""

from __future__ import annotations

from mechanisms.rng import SecureGenerator
from monitors.events import PrivacyEvent
from monitors.ledger import Ledger
from monitors.origins import Origins

#: Note on a ledger if a user's seed determines the noise of its answers.
REPRODUCIBLE = "reproducible query noise: no guarantee"
#: Note on a ledger with statistics of all rows, which reveal the number of rows.
TRUE_SIZE = "statistics on this ledger were computed with the true number of rows, which is treated as public"
#: Each ledger of this process on which answers were recorded, with a ledger of these answers alone.
_ASKED: list[tuple[Ledger, Ledger]] = []


def asked_ledgers() -> list[Ledger]:
    """The ledgers on which answers were recorded in this process, and which were not forgotten."""
    return [ledger for ledger, _ in _ASKED]


def answers_beyond(ledger: Ledger) -> int:
    """Number of answers of this process that are not on ``ledger``."""
    return sum(answers.number_outside(ledger) for asked, answers in _ASKED if asked is not ledger)


def remember_answers(ledger: Ledger, answers: Ledger) -> None:
    """Remember ``answers``, which are on ``ledger``, whatever else refers to them.

    A training on data that were changed with an answer must not forget its cost.
    """
    known = _answers_on(ledger)
    if not known.holds(answers):
        known.extend(answers, shift=0)


def forget_asked(ledger: Ledger) -> None:
    """Remove a ledger from those of ``asked_ledgers``: it is that of a training, which states its cost itself."""
    _ASKED[:] = [known for known in _ASKED if known[0] is not ledger]


def _answers_on(ledger: Ledger) -> Ledger:
    for asked, answers in _ASKED:
        if asked is ledger:
            return answers
    _ASKED.append((ledger, Ledger()))
    return _ASKED[-1][1]


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
    before = ledger.total
    ledger.record(event)
    _answers_on(ledger).record(event, origins=Origins(ledger.origins).stretch(before, 1))
    if generator.reproducible:
        ledger.add_note(REPRODUCIBLE)
