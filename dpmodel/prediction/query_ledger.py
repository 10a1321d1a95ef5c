"""A budget for answers about private data, charged and on the disk before an answer leaves."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from dpmodel.prediction.answer_cache import ANSWERS_NAME, AnswerCache
from dpmodel.prediction.query_budget import BUDGET_NAME, QueryBudget
from dpmodel.saving.lock import FolderLock
from dpmodel.saving.marks import TrainingMark, has_its_mark, require_marked
from mechanisms.fork import process_identity
from monitors import checks
from monitors.accountant import ACCOUNTANTS
from monitors.calibration import calibrate_noise_multiplier
from monitors.errors import BudgetExhausted, CalibrationError, CheckpointError, ConfigError
from monitors.events import GaussianEvent
from monitors.gaussian import gaussian_epsilon, gaussian_mu
from monitors.journal import JOURNAL_NAME, MOST_ANNOUNCED, ReleaseJournal
from monitors.ledger import Ledger
from monitors.relation import relation_of
from monitors.spent import epsilon_text

LEDGER_NAME = "ledger.json"

#: Most answers that the journal alone states, unless they are one charge: with too many, it could not be read again.
_UNSAVED = MOST_ANNOUNCED // 10

#: Rounding of sums of costs, which is added to what an answer costs.
_OUTWARD = 1 + 1e-12

#: No answer costs less, however large its noise.
_LEAST_COST = 1e-200


class QueryLedger:
    """The releases of a query interface: one budget, one folder, one process at a time.

    Guarantees: an answer is charged before it is given, and the charge is on the disk before it is used; charges are
    never refunded; a batch that does not fit is refused as a whole. A process that was killed, ``kill -9`` included,
    has charged at least what it answered. A forked process cannot use the ledger of its parent. A folder that this user
    has seen further on, such as a copy from before the last use, is refused (see ``TrainingMark``).

    Queries may depend on earlier answers. Each charge is a Gaussian release of the whole data, and their sum of squared
    inverse multipliers stays below a limit that is fixed in advance: the whole then is a Gaussian mechanism of that
    limit, whichever queries were asked (Smith and Thakurta 2022). Releases before the queries (``spent``) are part of
    the budget. ``spent`` is the epsilon of what was charged so far; where earlier answers decide what is asked later,
    or when to stop, the guarantee is the budget.

    Args:
        path: The folder; created if missing, private to the user. It holds ``ledger.json``, its journal and
            ``budget.json``; and ``answers.txt`` if answers are kept.
        epsilon: The budget, positive. None: that of an existing folder.
        delta: Strictly between 0 and 1. None: that of an existing folder.
        spent: Releases on the same data before the queries: the ledger of a training, or of private statistics. Only
            for a new folder.

    Attributes:
        path: The folder.
        epsilon: The budget.
        delta: Delta of the budget.

    Raises:
        ConfigError: The folder has a different budget, or is in use by a different process.
        CheckpointError: The ledger was changed or shortened.
        BudgetExhausted: ``spent`` leaves nothing.
        UnsupportedEventError: No relation of neighbours covers all releases of ``spent``.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with QueryLedger(folder, epsilon=1.0, delta=1e-5) as ledger:
        ...     ledger.charge(GaussianEvent(40.0), 100)
        ...     ledger.left(GaussianEvent(40.0)), round(ledger.spent, 2)
        (14, 0.93)

    References:
        Smith and Thakurta 2022, "Fully Adaptive Composition for Gaussian Differential Privacy".
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        epsilon: float | None = None,
        delta: float | None = None,
        *,
        spent: Ledger | None = None,
    ) -> None:
        checks.positive(**{} if epsilon is None else {"epsilon": epsilon})
        checks.open_unit(**{} if delta is None else {"delta": delta})
        self.path = Path(path)
        self._guard = threading.RLock()
        self._process = process_identity()
        self._lock = FolderLock(self.path)
        self._lock.acquire()
        self._open = True
        try:
            self._journal = ReleaseJournal(self.path / JOURNAL_NAME, folder=self._lock.handle())
            if self._lock.holds(self.path / BUDGET_NAME):
                budget, self._ledger = self._found(epsilon, delta, spent)
            else:
                budget, self._ledger = self._made(epsilon, delta, spent)
            self.epsilon, self.delta, self._before = budget.epsilon, budget.delta, budget.before
            self._limit = _most_squared(self._others(), self.epsilon, self.delta)
            self._squared = _squared(self._ledger)
            self._unsaved = 0
            self._answers: AnswerCache | None = None
            self._known_spent: tuple[float, float] | None = None
            if self._limit <= 0:
                raise BudgetExhausted(1, 0, self.spent, self.epsilon, self.delta)
        except BaseException:
            self._open = False
            self._lock.release()
            raise

    @staticmethod
    def budget_of(path: str | os.PathLike[str]) -> tuple[float, float]:
        """Epsilon and delta of the budget of an existing folder."""
        found = QueryBudget.load(Path(path) / BUDGET_NAME)
        return found.epsilon, found.delta

    @property
    def spent(self) -> float:
        """Epsilon of everything on the ledger, at ``delta``."""
        squared, known = self._squared, self._known_spent
        if known is None or known[0] != squared:  # beside releases of a training, it takes seconds
            known = self._known_spent = squared, _epsilon(self._others(), squared, self.delta)
        return known[1]

    @property
    def is_open(self) -> bool:
        """Whether answers can be charged: not after ``close``, after a charge that could not be written, or a fork."""
        return self._open and self._process == process_identity()

    @property
    def asked(self) -> int:
        """Number of answers that were charged, with the comparisons of ``Confidence``."""
        return self._ledger.total - self._before

    @property
    def head(self) -> str:
        """Digest over everything that was written to this ledger, which no other ledger has; see ``holds``."""
        return self._journal.head

    def holds(self, head: str) -> bool:
        """Whether this is the ledger that had this ``head``, with all that was charged by then."""
        return self._journal.follows(head)

    @property
    def answers(self) -> AnswerCache:
        """The answers that are kept in this folder.

        Raises:
            CheckpointError: The ledger is closed, or the file of answers was changed.
        """
        with self._guard:
            self._require_open()
            if self._answers is None:
                self._answers = AnswerCache(self.path / ANSWERS_NAME, self._lock, str(self._journal.training))
            return self._answers

    @property
    def ledger(self) -> Ledger:
        """A copy of the ledger."""
        with self._guard:
            return self._ledger.copy()

    def left(self, event: GaussianEvent) -> int:
        """Number of answers of this cost that still fit."""
        return _fitting(self._limit - self._squared, _cost(event, 1))

    def fits(self, *rows: tuple[GaussianEvent, int]) -> bool:
        """Whether answers of these costs and numbers fit together."""
        return self._squared + math.fsum(_cost(event, count) for event, count in rows) <= self._limit

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside the block, no other thread charges: what has room at its beginning has room until its end."""
        with self._guard:
            yield

    def charge(self, event: GaussianEvent, count: int = 1, *, room: Iterable[tuple[GaussianEvent, int]] = ()) -> None:
        """Charge ``count`` answers; call this before their noise is drawn.

        Args:
            event: Cost of one answer.
            count: Number of answers, at most 10,000,000.
            room: What must fit besides, without being charged: answers that may follow from these.

        Raises:
            BudgetExhausted: They do not fit. Nothing was charged.
            CheckpointError: The charge cannot be written to the disk, and the ledger is closed; or a copy of the folder
                has been opened since. No answer may be given.
        """
        if not isinstance(event, GaussianEvent):
            raise TypeError(f"the cost of an answer must be a GaussianEvent, got {event!r}")
        checks.positive_int(count=count)
        if count > MOST_ANNOUNCED:
            raise ValueError(f"at most {MOST_ANNOUNCED:,} answers can be charged at once, got {count:,}; divide them")
        with self._guard:
            self._require_open()
            require_marked(self._journal)  # a copy of the folder may have been opened
            if not self.fits((event, count), *room):
                raise BudgetExhausted(count, self._left_with(event, room), self.spent, self.epsilon, self.delta)
            if self._unsaved and self._unsaved + count > _UNSAVED:
                self._save()
            try:
                self._lock.handle()  # the folder may have been taken away
                self._journal.record(event, count)
                self._mark(flush=False)  # so that no earlier copy of the folder is opened meanwhile
                self._ledger.record(event, count)
                self._squared += _cost(event, count)
                self._unsaved += count
            except BaseException:
                self._open = False  # what is on the disk counts, and only reading it again tells
                raise

    def note(self, text: str) -> None:
        """Add a note to the ledger, once, and write it."""
        with self._guard:
            self._require_open()
            if text not in self._ledger.notes:
                self._ledger.add_note(text)
                self._save()

    def close(self) -> None:
        """Write the ledger and release the folder; in a forked process, do nothing."""
        if self._process != process_identity():
            return
        with self._guard:
            if self._open:
                self._open = False
                self._save()
            self._lock.release()

    def __enter__(self) -> QueryLedger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        spent = epsilon_text(self.spent)
        return f"QueryLedger({str(self.path)!r}, epsilon={self.epsilon:g}, delta={self.delta:g}, spent={spent})"

    def _require_open(self) -> None:
        if self._process != process_identity():
            raise CheckpointError(
                f"the query ledger in {self.path} belongs to the process that opened it, from which this one was "
                "forked: both would spend the same budget. Answer queries in one process"
            )
        if not self._open:
            raise CheckpointError(f"the query ledger in {self.path} is closed; open it again to answer further queries")

    def _left_with(self, event: GaussianEvent, room: Iterable[tuple[GaussianEvent, int]]) -> int:
        """How many answers fit, if each needs its share of the room."""
        each = _cost(event, 1) + math.fsum(_cost(other, 1) for other, _ in room)
        return _fitting(self._limit - self._squared, each)

    def _others(self) -> list[tuple[Any, int]]:
        return [(event, count) for event, count in self._ledger if not isinstance(event, GaussianEvent)]

    def _made(self, epsilon: float | None, delta: float | None, spent: Ledger | None) -> tuple[QueryBudget, Ledger]:
        """A new budget and its ledger; the budget is written last, so that nothing before the queries is lost."""
        if epsilon is None or delta is None:
            raise ConfigError(f"{self.path} holds no query budget yet; give epsilon and delta")
        if self._lock.holds(self.path / LEDGER_NAME) or len(self._journal):
            raise ConfigError(
                f"{self.path} holds a ledger without {BUDGET_NAME}: it belongs to a training, the file was removed, or "
                "the process that made it was killed before the first query. Use a folder of its own, and pass the "
                "ledger of a training as spent"
            )
        ledger = Ledger() if spent is None else spent.copy()
        _require_one_relation(ledger)
        self._begin()
        self._write(ledger)
        journal = self._journal.training
        assert journal is not None
        budget = QueryBudget(float(epsilon), float(delta), ledger.total, journal)
        self._lock.write(self.path / BUDGET_NAME, budget.to_json())
        return budget, ledger

    def _found(self, epsilon: float | None, delta: float | None, spent: Ledger | None) -> tuple[QueryBudget, Ledger]:
        """The budget and the ledger of the folder."""
        budget = QueryBudget.load(self.path / BUDGET_NAME)
        if (epsilon, delta) not in ((None, None), (budget.epsilon, budget.delta)):
            raise ConfigError(
                f"the queries of {self.path} have a budget of epsilon {budget.epsilon:g} at delta {budget.delta:g}, "
                f"but epsilon={epsilon}, delta={delta} was asked for; leave both out, or use a new folder and pass "
                "this ledger as spent"
            )
        if spent is not None:
            raise ConfigError(
                f"{self.path} already holds the ledger of its queries; spent is for a new folder. Leave it out"
            )
        place = self.path / LEDGER_NAME
        if not self._lock.holds(place):
            raise CheckpointError(f"{place} was removed, so what was answered cannot be stated; restore it")
        if budget.journal != self._journal.training:
            raise CheckpointError(
                f"{self.path / BUDGET_NAME} is the budget of a different ledger, or {JOURNAL_NAME} beside it was "
                "removed; restore the original files"
            )
        require_marked(self._journal)
        try:
            ledger = Ledger.load(place, alone=False)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        _require_one_relation(ledger)
        self._begin()
        return budget, ledger

    def _begin(self) -> None:
        """State that a process opens the ledger: two copies that are opened differ from then on."""
        self._journal.begin(0)
        self._mark()

    def _mark(self, *, flush: bool = True) -> None:
        assert self._journal.training is not None
        if has_its_mark(self._journal):  # else a copy of the folder has gone on, and its mark stays
            TrainingMark(self._journal.training, len(self._journal), self._journal.head).save(flush=flush)

    def _save(self) -> None:
        self._write(self._ledger)
        self._unsaved = 0
        self._mark()

    def _write(self, ledger: Ledger) -> None:
        ledger.save(self.path / LEDGER_NAME, journal=self._journal.head, folder=self._lock.handle())


@dataclass(frozen=True)
class QueryStatus:
    """The state of a query ledger.

    Args:
        asked: Number of answers that were charged.
        left: Number of further answers that cost as much as the last one; None if there was none.
        spent: Epsilon of everything on the ledger.
        epsilon: The budget.
        delta: Delta of the budget.
        notes: Notes on the ledger.
    """

    asked: int
    left: int | None
    spent: float
    epsilon: float
    delta: float
    notes: tuple[str, ...] = ()


def query_status(path: str | os.PathLike[str]) -> QueryStatus:
    """What was charged to the query ledger in the folder ``path``, which a different process may be using.

    Raises:
        ConfigError: The folder holds no query budget.
        CheckpointError: The ledger was changed or shortened.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with QueryLedger(folder, epsilon=1.0, delta=1e-5) as ledger:
        ...     ledger.charge(GaussianEvent(40.0), 100)
        ...     status = query_status(folder)
        >>> status.asked, status.left, round(status.spent, 2)
        (100, 14, 0.93)
    """
    folder = Path(path)
    if not (folder / BUDGET_NAME).is_file():
        raise ConfigError(
            f"{folder} holds no query budget: {BUDGET_NAME} is missing; give the folder of a query ledger"
        )
    budget = QueryBudget.load(folder / BUDGET_NAME)
    epsilon, delta = budget.epsilon, budget.delta
    try:
        ledger = Ledger.load(folder / LEDGER_NAME, alone=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from error
    others = [(event, count) for event, count in ledger if not isinstance(event, GaussianEvent)]
    squared, left, asked = _squared(ledger), None, ledger.total - budget.before
    last = ledger.rows[-1][0] if asked > 0 else None
    if isinstance(last, GaussianEvent):
        left = _fitting(_most_squared(others, epsilon, delta) - squared, _cost(last, 1))
    return QueryStatus(asked, left, _epsilon(others, squared, delta), epsilon, delta, ledger.notes)


def _fitting(room: float, each: float) -> int:
    return max(0, math.floor(room / each))


def _require_one_relation(ledger: Ledger) -> None:
    """Refuse releases that no single epsilon covers together with answers."""
    relation_of([*ledger, (GaussianEvent(1.0), 1)])


def _cost(event: GaussianEvent, count: int) -> float:
    inverse = 1.0 / event.noise_multiplier
    return count * max(inverse * inverse, _LEAST_COST) * _OUTWARD


def _squared(rows: Iterable[tuple[Any, int]]) -> float:
    """Sum of the squared inverse multipliers of the Gaussian releases."""
    return math.fsum(_cost(event, count) for event, count in rows if isinstance(event, GaussianEvent))


def _epsilon(others: list[tuple[Any, int]], squared: float, delta: float) -> float:
    if not others:
        return gaussian_epsilon(math.sqrt(squared), delta)
    rows = Ledger()
    for event, count in others:
        rows.record(event, count)
    if squared:
        rows.record(GaussianEvent(1 / math.sqrt(squared)))
    return ACCOUNTANTS.get("pld")().epsilon(rows, delta)


def _most_squared(others: list[tuple[Any, int]], epsilon: float, delta: float) -> float:
    """The largest sum of squared inverse multipliers that fits beside the other releases; 0 if nothing fits."""
    if not others:
        return gaussian_mu(epsilon, delta) ** 2

    def ledger_with(multiplier: float) -> Ledger:
        ledger = Ledger()
        for event, count in (*others, (GaussianEvent(multiplier), 1)):
            ledger.record(event, count)
        return ledger

    try:
        return calibrate_noise_multiplier(epsilon, delta, ledger_with, "pld") ** -2
    except CalibrationError:  # the other releases alone exceed the budget
        return 0.0
