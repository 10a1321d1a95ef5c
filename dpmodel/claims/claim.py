"""What is claimed of trained weights: the ledger, the statements that go with it, and what was verified."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mechanisms.queries import asked_ledgers
from monitors.errors import UnprotectedUpdateError
from monitors.events import ViolationEvent
from monitors.ledger import Ledger
from monitors.spent import describe_sampling

#: Stands on a ledger that the user chose although the weights have been trained on another one.
NOT_CONTAINED = "the weights were trained privately before; this ledger does not contain it"

#: Ends the refusal to train on.
FRESH_WEIGHTS = (
    "build network, optimizer and model anew, so that training starts from fresh weights; keep the ledger: what was "
    "released counts for the data"
)


class Claim:
    """The privacy claim of one or several models that share weights.

    Args:
        ledger: Where their releases are recorded.
        chosen: Whether the user chose this ledger; it is then never joined with another one.
    """

    def __init__(self, ledger: Ledger | None = None, *, chosen: bool = False) -> None:
        self.ledger = Ledger() if ledger is None else ledger
        self.chosen = chosen
        #: Unit, relation and sampling in words, one entry for each kind of training.
        self.statements: list[dict[str, str]] = stated(self.ledger)
        #: What was verified, how and when; one sentence each, for the report.
        self.verification: list[str] = []
        self._trainings = 0
        self._listeners: list[Callable[[str], None]] = []
        self._joined: Claim | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_listeners": [], "_trainings": 0}

    @property
    def current(self) -> Claim:
        """The claim that holds now: this one, or the one that it was joined with."""
        return self if self._joined is None else self._joined.current

    @property
    def in_training(self) -> bool:
        """Whether a training records on the ledger at this moment."""
        return self._trainings > 0

    def begin(self, *listeners: Callable[[str], None]) -> None:
        """A training begins; ``listeners`` are called at once with the reason if the claim is violated."""
        self._trainings += 1
        self._listeners += listeners

    def end(self, *listeners: Callable[[str], None]) -> None:
        """The training of these ``listeners`` has ended."""
        self._trainings -= 1
        self._listeners = [known for known in self._listeners if known not in listeners]

    def violate(self, reason: str) -> None:
        """Record that the claim does not hold, and tell the listeners so that it is on the disk at once."""
        self.ledger.record(ViolationEvent(reason))
        for listener in tuple(self._listeners):
            listener(reason)

    def require_sound(self) -> None:
        """Refuse to train on a ledger with a violation.

        Raises:
            UnprotectedUpdateError: There is one; says which.
        """
        if self.ledger.violations:
            raise UnprotectedUpdateError(
                f"these weights are not trained further: {self.ledger.caveats[0]}. To train again, {FRESH_WEIGHTS}"
            )

    def verified(self, sentences: Iterable[str]) -> None:
        """Add to what was verified, each sentence once."""
        self.verification += [text for text in dict.fromkeys(sentences) if text not in self.verification]

    def join(self, other: Claim) -> Claim:
        """One claim for both, from now on: that of a training under way, or else this one.

        Raises:
            UnprotectedUpdateError: Both are in training.
        """
        if other is self:
            return self
        if other.in_training and self.in_training:
            raise UnprotectedUpdateError(
                "two models that share trained weights are both being trained, each on a ledger of its own; train them "
                "one after the other, or give both the same ledger="
            )
        if other.in_training:
            return other.join(self)
        if other.ledger is not self.ledger:
            self.ledger.extend(other.ledger)
        self.statements += [entry for entry in other.statements if entry not in self.statements]
        self.verified(other.verification)
        other._joined = self
        return self

    def note_if_missing(self, other: Claim) -> None:
        """Say on the ledger that it does not contain what ``other`` spent on the same weights."""
        if not self.ledger.covers(other.ledger):
            self.ledger.add_note(NOT_CONTAINED)


def forgotten_queries(ledger: Ledger) -> str | None:
    """What must be said if queries of this process stand on another ledger only; None if they do not."""
    missing = [asked for asked in asked_ledgers() if asked is not ledger and not ledger.covers(asked)]
    if not missing:
        return None
    return (
        "private queries were answered on another ledger in this process; their cost is not in this epsilon. If they "
        "asked the same data, give DPModel that ledger (ledger=...); if not, give it one of its own (ledger=Ledger())"
    )


def stated(ledger: Ledger) -> list[dict[str, str]]:
    """What can be said of a ledger whose trainings are not known."""
    return [{"unit": "example", "sampling": describe_sampling(ledger)}] if len(ledger) else []


def joined_statement(statements: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """One statement for several trainings: each field lists the distinct texts.

    Example:
        >>> joined_statement([{"unit": "example"}, {"unit": "example", "sampling": "none"}])
        {'unit': 'example', 'sampling': 'none'}
    """
    entries = list(statements)
    fields = dict.fromkeys(name for entry in entries for name in entry)
    texts = {name: dict.fromkeys(entry[name] for entry in entries if name in entry) for name in fields}
    return {name: "; ".join(found) for name, found in texts.items()}
