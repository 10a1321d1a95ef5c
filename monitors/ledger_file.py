"""The file of a ledger, and the releases that the journal beside it has announced since it was written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monitors import checks
from monitors.events import ViolationEvent
from monitors.journal import JOURNAL_NAME, ReleaseJournal
from monitors.untrusted import parse_json

if TYPE_CHECKING:
    from monitors.ledger import Ledger

FORMAT = "dpmodel-ledger/1"

#: On a ledger that was read while its training was under way, or after it was killed.
ANNOUNCED_NOTE = "the training is under way or was killed: the steps that it had announced are charged in full"


def values_in(text: str) -> dict[str, Any]:
    """The values in the text of a ledger.

    Raises:
        ValueError: It is not a ledger.
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"not a ledger: the text is not JSON ({error})") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"not a ledger of format {FORMAT!r}: found {checks.shown(found)}")
    return values


def add_announced(ledger: Ledger, journal: ReleaseJournal, head: str | None) -> None:
    """Charge what ``journal`` has announced since the file of ``ledger`` was written.

    Args:
        ledger: The ledger, as in its file.
        journal: The journal beside the file.
        head: The head of the journal that the file names; None if it names none.

    Raises:
        ValueError: File and journal contradict each other.
    """
    if head is None:
        if journal.training is not None:
            raise ValueError(
                f"it was not written by the training of {JOURNAL_NAME} beside it, so what that training released "
                "cannot be stated. Restore the original file"
            )
        return  # an earlier version did not name the head in a complete ledger
    if not journal.follows(head):
        raise ValueError(
            f"{JOURNAL_NAME} beside it is missing, older, or of a different training, so what the training "
            "released since cannot be stated. Restore the original file"
        )
    for process, rows in enumerate(journal.announced(head)):
        stated = [{"event": event.to_dict(), "count": count} for event, count in rows]
        # Without identities, which no journal states, the same releases read twice do not seem to be different ones.
        released = ledger.from_rows(stated, [ANNOUNCED_NOTE] if rows else ())
        # The process that wrote this ledger continues its partitions; a later process gets new numbers.
        ledger.extend(released, None if process else 0)
    for reason in journal.violations:
        if reason not in ledger.violations:
            ledger.record(ViolationEvent(reason))
    if journal.end is not None and journal.end[1] != ledger.digest():
        raise ValueError(
            f"it is not the ledger that {JOURNAL_NAME} beside it states for the end of the training: digest "
            f"{journal.end[1]!r} is stated there, and the releases give {ledger.digest()!r}. Restore the original "
            "file"
        )
