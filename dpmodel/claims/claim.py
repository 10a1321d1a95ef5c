"""The privacy claim of trained weights: the ledger, its statements, and what was verified."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from dpmodel.planning.release import NO_GUARANTEE
from mechanisms.answers import answers_beyond
from monitors.errors import UnprotectedUpdateError, UnsupportedEventError
from monitors.events import ViolationEvent
from monitors.ledger import Ledger
from monitors.spent import describe_sampling, privacy_spent

#: Note on a ledger that the user chose although the weights have been trained on a different one.
NOT_CONTAINED = "the weights were trained privately before; this ledger does not contain that training"

#: Ends each refusal to train further.
FRESH_WEIGHTS = (
    "build a new network, optimizer and model, so that training starts from fresh weights. Keep the ledger: its "
    "releases count for the data"
)


#: Whether epsilon is finite does not depend on delta; a plugin may support one accountant only.
_ANY_DELTA = 1e-5
_ACCOUNTANTS = ("rdp", "pld")


class Claim:
    """The privacy claim of one or several models that share weights.

    Args:
        ledger: Where their releases are recorded.
        chosen: Whether the user chose this ledger; such a ledger is never joined with a different one.
    """

    def __init__(self, ledger: Ledger | None = None, *, chosen: bool = False) -> None:
        self.ledger = Ledger() if ledger is None else ledger
        self.chosen = chosen
        #: Unit, relation and sampling in words, one entry per kind of training.
        self.statements: list[dict[str, str]] = stated(self.ledger)
        #: What was verified, how and when; sentences for the report.
        self.verification: list[str] = []
        #: Digests of the network and of what the optimizer carried after the last training, in this process.
        self.result: tuple[tuple[tuple[str, ...], int], int | None] | None = None
        self._trainings = 0
        self._listeners: list[Callable[[str], None]] = []
        self._witnesses: list[Callable[[], None]] = []
        self._joined: Claim | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_listeners": [], "_witnesses": [], "_trainings": 0, "result": None}

    @property
    def current(self) -> Claim:
        """The claim in force: this one, or the one that it was joined with."""
        return self if self._joined is None else self._joined.current

    @property
    def in_training(self) -> bool:
        """Whether a training is recording on the ledger."""
        return self._trainings > 0

    def begin(self, listener: Callable[[str], None], witness: Callable[[], None]) -> None:
        """Start a training.

        Args:
            listener: Called immediately with the reason if the claim is violated.
            witness: Violates the claim if evidence that is still on its way from a GPU says so; see ``read_late``.
        """
        self._trainings += 1
        self._listeners.append(listener)
        self._witnesses.append(witness)

    def end(self, listener: Callable[[str], None], witness: Callable[[], None]) -> None:
        """End the training of this listener and this witness."""
        self._trainings -= 1
        self._listeners.remove(listener)
        self._witnesses.remove(witness)

    def read_late(self) -> None:
        """Hear the witnesses; call it before weights are saved or copied.

        Raises:
            UnprotectedUpdateError: The weights were changed by something other than dpmodel.
        """
        for witness in tuple(self._witnesses):
            witness()

    def violate(self, reason: str) -> None:
        """Record that the claim does not hold, and call the listeners, which write it to disk immediately."""
        self.ledger.record(ViolationEvent(reason))
        for listener in tuple(self._listeners):
            listener(reason)

    def require_sound(self) -> None:
        """Refuse to train on a ledger with a violation.

        Raises:
            UnprotectedUpdateError: The ledger has a violation; names it.
        """
        if self.ledger.violations:
            raise UnprotectedUpdateError(
                f"these weights cannot be trained further: {self.ledger.caveats[0]}. To train again, {FRESH_WEIGHTS}"
            )

    def verified(self, sentences: Iterable[str]) -> None:
        """Add sentences to what was verified, each once."""
        self.verification += [text for text in dict.fromkeys(sentences) if text not in self.verification]

    def join(self, other: Claim) -> Claim:
        """Join both claims, and return the joint claim: that of a running training, or else this one.

        Raises:
            UnprotectedUpdateError: Both are in training.
        """
        if other is self:
            return self
        if other.in_training and self.in_training:
            raise UnprotectedUpdateError(
                "two models that share trained weights are being trained at once on different ledgers; train them one "
                "after the other, or pass the same ledger= to both"
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
        """Note on the ledger that it does not contain what ``other`` spent on the same weights."""
        if not self.ledger.holds(other.ledger):
            self.ledger.add_note(NOT_CONTAINED)


def without_guarantee(ledger: Ledger) -> str | None:
    """Why the releases on a ledger have no guarantee; None if they have one.

    Example:
        >>> from monitors.events import GaussianEvent
        >>> ledger = Ledger().record(GaussianEvent(2.0))
        >>> without_guarantee(ledger) is None
        True
        >>> ledger.add_note("reproducible noise: no guarantee")
        >>> without_guarantee(ledger)
        'reproducible noise: no guarantee'
    """
    known = [note for note in ledger.notes if note.endswith(NO_GUARANTEE)]
    if ledger.violations or known:
        return [*ledger.caveats[: len(ledger.violations)], *known][0]
    return None if any(map(partial(_is_finite, ledger), _ACCOUNTANTS)) else "its ledger states no finite epsilon"


def _is_finite(ledger: Ledger, accountant: str) -> bool:
    try:
        return math.isfinite(privacy_spent(ledger, _ANY_DELTA, accountant).epsilon)
    except UnsupportedEventError:
        return False


def forgotten_queries(ledger: Ledger) -> str | None:
    """The note if queries of this process are on a different ledger only; otherwise None."""
    if not answers_beyond(ledger):
        return None
    return (
        "private queries were answered on a different ledger in this process; their cost is not in this epsilon. If "
        "they used the same data, pass that ledger to DPModel (ledger=...); otherwise pass a new one (ledger=Ledger())"
    )


def stated(ledger: Ledger) -> list[dict[str, str]]:
    """The statements for a ledger whose trainings are unknown."""
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
