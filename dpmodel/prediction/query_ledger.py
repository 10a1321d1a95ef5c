"""A budget for answers about private data, charged and on the disk before an answer leaves."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from dpmodel.prediction.answer_cache import ANSWERS_NAME, AnswerCache
from dpmodel.saving.lock import FolderLock
from monitors import checks
from monitors.accountant import ACCOUNTANTS
from monitors.calibration import calibrate_noise_multiplier
from monitors.errors import BudgetExhausted, CalibrationError, CheckpointError, ConfigError
from monitors.events import GaussianEvent
from monitors.gaussian import gaussian_epsilon, gaussian_mu
from monitors.journal import JOURNAL_NAME, ReleaseJournal
from monitors.ledger import Ledger
from monitors.untrusted import MAX_LEDGER_BYTES, parse_json, read_text

LEDGER_NAME = "ledger.json"
BUDGET_NAME = "budget.json"
FORMAT = "dpmodel-query-budget/1"

#: Rounding of sums of costs, which is added to what an answer costs.
_OUTWARD = 1 + 1e-12


class QueryLedger:
    """The releases of a query interface: one budget, one folder, one process at a time.

    Guarantees: an answer is charged before it is given, and the charge is on the disk before it is used; charges are
    never refunded; a batch that does not fit is refused as a whole. A process that was killed, ``kill -9`` included,
    has charged at least what it answered.

    Queries may depend on earlier answers. Each charge is a Gaussian release of the whole data, and their sum of squared
    inverse multipliers stays below a limit that is fixed in advance: the whole then is a Gaussian mechanism of that
    limit, whichever queries were asked (Smith and Thakurta 2022). Releases before the queries (``spent``) are part of
    the budget.

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
        self._guard = threading.Lock()
        self._lock = FolderLock(self.path)
        self._lock.acquire()
        self._open = True
        try:
            self.epsilon, self.delta, self._before = self._budget(epsilon, delta, spent)
            self._journal = ReleaseJournal(self.path / JOURNAL_NAME, folder=self._lock.handle())
            self._ledger = self._load(spent)
            self._limit = _most_squared(self._others(), self.epsilon, self.delta)
            self._squared = _squared(self._ledger)
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
        return _read_budget(Path(path) / BUDGET_NAME)[:2]

    @property
    def spent(self) -> float:
        """Epsilon of everything on the ledger, at ``delta``."""
        squared, known = self._squared, self._known_spent
        if known is None or known[0] != squared:  # beside releases of a training, it takes seconds
            known = self._known_spent = squared, _epsilon(self._others(), squared, self.delta)
        return known[1]

    @property
    def is_open(self) -> bool:
        """Whether answers can be charged: not after ``close``, nor after a charge that could not be written."""
        return self._open

    @property
    def asked(self) -> int:
        """Number of answers that were charged, with the comparisons of ``Confidence``."""
        return self._ledger.total - self._before

    @property
    def answers(self) -> AnswerCache:
        """The answers that are kept in this folder.

        Raises:
            CheckpointError: The ledger is closed, or the file of answers was changed.
        """
        with self._guard:
            self._require_open()
            if self._answers is None:
                self._answers = AnswerCache(self.path / ANSWERS_NAME, self._lock)
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

    def charge(self, event: GaussianEvent, count: int = 1, *, room: Iterable[tuple[GaussianEvent, int]] = ()) -> None:
        """Charge ``count`` answers; call this before their noise is drawn.

        Args:
            event: Cost of one answer.
            count: Number of answers.
            room: What must fit besides, without being charged: answers that may follow from these.

        Raises:
            BudgetExhausted: They do not fit. Nothing was charged.
            CheckpointError: The charge cannot be written to the disk; the ledger is closed, and no answer may be given.
        """
        if not isinstance(event, GaussianEvent):
            raise TypeError(f"the cost of an answer must be a GaussianEvent, got {event!r}")
        checks.positive_int(count=count)
        with self._guard:
            self._require_open()
            if not self.fits((event, count), *room):
                raise BudgetExhausted(count, self._left_with(event, room), self.spent, self.epsilon, self.delta)
            try:
                self._lock.handle()  # the folder may have been taken away
                self._journal.record(event, count)
            except BaseException:
                self._open = False  # the line may be on the disk or not: only reading it again tells
                raise
            self._ledger.record(event, count)
            self._squared += _cost(event, count)

    def note(self, text: str) -> None:
        """Add a note to the ledger, once, and write it."""
        with self._guard:
            self._require_open()
            if text not in self._ledger.notes:
                self._ledger.add_note(text)
                self._save()

    def close(self) -> None:
        """Write the ledger and release the folder."""
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
        return (
            f"QueryLedger({str(self.path)!r}, epsilon={self.epsilon:g}, delta={self.delta:g}, spent={self.spent:.4g})"
        )

    def _require_open(self) -> None:
        if not self._open:
            raise CheckpointError(f"the query ledger in {self.path} is closed; open it again to answer further queries")

    def _left_with(self, event: GaussianEvent, room: Iterable[tuple[GaussianEvent, int]]) -> int:
        """How many answers fit, if each needs its share of the room."""
        each = _cost(event, 1) + math.fsum(_cost(other, 1) for other, _ in room)
        return _fitting(self._limit - self._squared, each)

    def _others(self) -> list[tuple[Any, int]]:
        return [(event, count) for event, count in self._ledger if not isinstance(event, GaussianEvent)]

    def _budget(self, epsilon: float | None, delta: float | None, spent: Ledger | None) -> tuple[float, float, int]:
        """Epsilon, delta, and the number of releases before the queries."""
        place = self.path / BUDGET_NAME
        if not self._lock.holds(place):
            if epsilon is None or delta is None:
                raise ConfigError(f"{self.path} holds no query budget yet; give epsilon and delta")
            if self._lock.holds(self.path / LEDGER_NAME) or self._lock.holds(self.path / JOURNAL_NAME):
                raise ConfigError(
                    f"{self.path} holds a ledger without {BUDGET_NAME}: it belongs to a training, or the file was "
                    "removed. Use a folder of its own, and pass the ledger of a training as spent"
                )
            before = 0 if spent is None else spent.total
            values = {"format": FORMAT, "epsilon": float(epsilon), "delta": float(delta), "before": before}
            self._lock.write(place, json.dumps(values, indent=1) + "\n")
            return float(epsilon), float(delta), before
        found = _read_budget(place)
        if (epsilon, delta) not in ((None, None), found[:2]):
            raise ConfigError(
                f"the queries of {self.path} have a budget of epsilon {found[0]:g} at delta {found[1]:g}, but "
                f"epsilon={epsilon}, delta={delta} was asked for; leave both out, or use a new folder and pass this "
                "ledger as spent"
            )
        return found

    def _load(self, spent: Ledger | None) -> Ledger:
        place = self.path / LEDGER_NAME
        if not self._lock.holds(place):
            if len(self._journal) > 1:
                raise CheckpointError(f"{place} was removed, so what was answered cannot be stated; restore it")
            if not len(self._journal):
                self._journal.begin(0)  # with a random ID: no other journal can take its place
            ledger = Ledger() if spent is None else spent.copy()
            self._write(ledger)
            return ledger
        if spent is not None:
            raise ConfigError(
                f"{self.path} already holds the ledger of its queries; spent is for a new folder. Leave it out"
            )
        try:
            return Ledger.load(place, alone=False)
        except ValueError as error:
            raise CheckpointError(str(error)) from error

    def _save(self) -> None:
        self._write(self._ledger)

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
    epsilon, delta, before = _read_budget(folder / BUDGET_NAME)
    try:
        ledger = Ledger.load(folder / LEDGER_NAME, alone=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from error
    others = [(event, count) for event, count in ledger if not isinstance(event, GaussianEvent)]
    squared, left, asked = _squared(ledger), None, ledger.total - before
    last = ledger.rows[-1][0] if asked > 0 else None
    if isinstance(last, GaussianEvent):
        left = _fitting(_most_squared(others, epsilon, delta) - squared, _cost(last, 1))
    return QueryStatus(asked, left, _epsilon(others, squared, delta), epsilon, delta, ledger.notes)


def _read_budget(place: Path) -> tuple[float, float, int]:
    """Epsilon, delta, and the number of releases before the queries."""
    values = parse_json(read_text(place, MAX_LEDGER_BYTES))
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{place} is not a query budget of format {FORMAT!r}")
    epsilon: Any = values.get("epsilon")
    delta: Any = values.get("delta")
    before: Any = values.get("before", 0)
    checks.positive(epsilon=epsilon)
    checks.open_unit(delta=delta)
    checks.non_negative_int(before=before)
    return float(epsilon), float(delta), int(before)


def _fitting(room: float, each: float) -> int:
    return max(0, math.floor(room / each))


def _cost(event: GaussianEvent, count: int) -> float:
    return count / event.noise_multiplier**2 * _OUTWARD


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
