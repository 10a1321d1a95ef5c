"""Trial of a sampler, before any privacy is spent: are its rows drawn as ``amplify`` states?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mechanisms.normal_noise import stated_multiplier
from mechanisms.rng import SecureGenerator
from mechanisms.sampling import Sampler
from mechanisms.significance import Floats, alike, repeated_at, unlikely_share
from mechanisms.trial import PublicGenerators, once, refusal
from mechanisms.units import ClippedUnit
from monitors.events import (
    ComposedEvent,
    CorrelatedEvent,
    DisjointEvent,
    GaussianEvent,
    PoissonSampledEvent,
    PrivacyEvent,
)

#: ``(num_examples, batch_size, first_partition)`` -> a fresh, secret sampler.
MakeSampler = Callable[[int, int, int], Sampler]

#: The small data set of the trial, used for many steps: rows, batch size and steps.
_EXAMPLES, _BATCH, _STEPS = 256, 64, 256
#: Most steps of the small data set for correlated noise.
_MOST_STEPS = 4096
#: Number of steps in which two samplers are compared.
_COMPARED_STEPS = 32
#: Most rows of the real data set examined in all steps together, and most steps.
_REAL_ROWS, _REAL_STEPS = 1 << 20, 12
_REGIONS = 64
#: Range of the batch size's variance over that of independent rows; with this many steps, no correct sampler leaves it.
_LEAST_VARIANCE, _MOST_VARIANCE = 0.4, 2.0
_FIRST_PARTITION = 7
_GROUPED_ROWS = 4096
_SECRET = "Draw from self.generator, a SecureGenerator"
#: Example releases of a step; two of them, since a step may release a sum and a count.
_RELEASED = (GaussianEvent(2.0), GaussianEvent(3.0))


def require_sound_sampler(
    make_sampler: MakeSampler, num_examples: int, batch_size: int, unit: ClippedUnit, steps: int = 1
) -> tuple[str, ...]:
    """Refuse a sampler whose rows are not drawn as ``amplify`` states.

    The trial uses fresh samplers, on a small data set for many steps and on one of the real size for a few. For any
    sampler, rows must be in range, and no row may be drawn twice in a step. For Poisson sampling, the trial tests the
    rate, each row's share, and independence of rows, steps and public seeds. For parts of a partition, no row may be in
    two parts, and the partitions must be those that the run has reserved. Groups of micro-batches must be independent
    and uniform.

    A sampler that has passed is not tried again in the same process (see ``mechanisms.trial.once``).

    Args:
        make_sampler: Function from ``num_examples``, ``batch_size`` and ``first_partition`` to a fresh, secret sampler.
        num_examples: Number of rows in the data set.
        batch_size: Expected number of rows per step.
        unit: The clipped unit.
        steps: Number of planned steps.

    Returns:
        Notes on what could not be tried.

    Raises:
        UnprotectedUpdateError: Rows are not drawn as stated; the message says what was counted and what to do.
    """
    fresh = make_sampler(num_examples, batch_size, 0)
    trial = _Trial(make_sampler, fresh, unit, steps)
    return once(fresh, ("sampler", unit, steps), trial)


@dataclass(frozen=True)
class _Claim:
    """What a step's event states about its rows."""

    rate: float = 1.0
    partition: int | None = None
    rounds: bool = False  # of correlated noise: a row joins a round at ``rate``


@dataclass(frozen=True)
class _Drawn:
    """Rows drawn by a fresh sampler in some steps, and what its events state about them."""

    sampler: Sampler
    steps: Sequence[int]
    rows: list[NDArray[np.int64]]
    claims: list[_Claim]

    @property
    def rates(self) -> Floats:
        return np.array([claim.rate for claim in self.claims])

    @property
    def members(self) -> Floats:
        """1 for each drawn row, else 0; shape (steps, rows)."""
        found = np.zeros((len(self.rows), self.sampler.num_examples))
        for at, rows in enumerate(self.rows):
            found[at, rows] = 1.0
        return found


class _UnknownClaimError(Exception):
    """An event states something that the trial does not know."""


@dataclass(frozen=True)
class _Trial:
    make: MakeSampler
    sampler: Sampler
    unit: ClippedUnit
    steps: int

    def __call__(self) -> tuple[str, ...]:
        with PublicGenerators() as public:
            try:
                real = self._try_real()
                small = self._try_small()
                if real.rates.min() < 1:
                    self._require_secret(small or real)
            except _UnknownClaimError as error:
                return (f"sampler {self._name} was not tried: amplify states {error}, which the trial does not know",)
            moved = public.moved()
        if moved and real.rates.min() < 1:
            self._require_untouched()
        if self.unit.grouped:
            self._require_uniform_groups()
        return () if small else (f"sampler {self._name} was tried on a data set of the real size only",)

    @property
    def _name(self) -> str:
        return type(self.sampler).__name__

    def _try_real(self) -> _Drawn:
        count = max(2, min(_REAL_STEPS, _REAL_ROWS // self.sampler.num_examples))
        extra = SecureGenerator().integers(self.steps, max(0, count - 3)) if self.steps > count else range(self.steps)
        chosen = sorted({0, min(1, self.steps - 1), self.steps - 1, *map(int, extra)})
        drawn = self._drawn(self.sampler.num_examples, self.sampler.batch_size, chosen)
        self._require_shares(drawn)
        for at in range(1, len(drawn.rows)):
            share = drawn.rates[at - 1] * drawn.rates[at]
            common = np.intersect1d(drawn.rows[at - 1], drawn.rows[at], assume_unique=True).size
            if share < 1 and drawn.claims[at].partition is None:
                where = f"drawn at both steps {drawn.steps[at - 1]} and {drawn.steps[at]}"
                self._require_share(common, drawn.sampler.num_examples, share, where)
        self._require_parts(drawn)
        return drawn

    def _try_small(self) -> _Drawn | None:
        """Many steps on a small data set; None if the sampler does not support it."""
        try:
            # several groups of correlated noise share the data set
            batch, steps = max(1, _BATCH // self.sampler.bands), min(_STEPS * self.sampler.bands, _MOST_STEPS)
            probe = self.make(_EXAMPLES, batch, _FIRST_PARTITION)
            probe.rows(0)
        except Exception:
            return None
        drawn = self._drawn(_EXAMPLES, batch, range(steps))
        self._require_shares(drawn)
        self._require_parts(drawn)
        if drawn.rates.min() < 1:
            self._require_independent(drawn)
        return drawn

    def _drawn(self, num_examples: int, batch_size: int, steps: Sequence[int]) -> _Drawn:
        sampler = self.make(num_examples, batch_size, _FIRST_PARTITION)
        first = self._claim(sampler, steps[0])
        if first.rounds:
            return self._rounds(sampler, sorted({step // sampler.period for step in steps}))
        drawn = _Drawn(sampler, steps, [], [])
        last = np.full(num_examples, -sampler.bands)
        for step in steps:
            drawn.claims.append(self._claim(sampler, step))
            drawn.rows.append(self._rows(sampler, step))
            self._require_apart(drawn.rows[-1], step, last, sampler.bands)
        return drawn

    def _rounds(self, sampler: Sampler, rounds: Sequence[int]) -> _Drawn:
        """The rows of whole rounds: a row joins a round independently, at the stated rate, and always at one place."""
        drawn = _Drawn(sampler, [number * sampler.period for number in rounds], [], [])
        last, most = (
            np.full(sampler.num_examples, -sampler.bands),
            sampler.partitions((rounds[-1] + 1) * sampler.period),
        )
        for begin in drawn.steps:
            rows, claims = [], set()
            for step in range(begin, begin + sampler.period):
                claims.add(self._claim(sampler, step))
                rows.append(self._rows(sampler, step))
                self._require_apart(rows[-1], step, last, sampler.bands)
            claim = min(claims, key=lambda claim: claim.rate)
            stated = {-1 if claim.partition is None else claim.partition for claim in claims}
            if len(stated) > 1 or not 0 <= min(stated) - _FIRST_PARTITION < most:
                raise self._refusal(
                    f"the steps {begin} to {step} state the partitions {sorted(stated)}, but each round is one "
                    f"partition, from {_FIRST_PARTITION} to {_FIRST_PARTITION + most - 1}",
                    "Number rounds from first_partition on",
                )
            drawn.rows.append(np.sort(np.concatenate(rows)))
            drawn.claims.append(_Claim(rate=claim.rate))
        return drawn

    def _require_apart(self, rows: NDArray[np.int64], step: int, last: NDArray[np.int64], bands: int) -> None:
        """No row is drawn again within ``bands`` steps; ``last`` is the step at which each row was drawn last."""
        soon = rows[step - last[rows] < bands] if bands > 1 else rows[:0]
        if soon.size:
            raise self._refusal(
                f"step {step} drew row {soon[0]} again, {step - last[soon[0]]} steps after step {last[soon[0]]}, but "
                f"the noise is correlated over {bands} steps",
                "Draw each row only in steps that are at least that far apart",
            )
        last[rows] = step

    def _rows(self, sampler: Sampler, step: int) -> NDArray[np.int64]:
        try:
            rows = np.asarray(sampler.rows(step))
        except Exception as error:
            raise self._refusal(
                f"rows({step}) raised {type(error).__name__}: {error}", "Make rows return the rows of any planned step"
            ) from error
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise self._refusal(
                f"rows({step}) returned shape {rows.shape} of {rows.dtype}", "Return a vector of integer row indices"
            )
        if not rows.size:
            return rows.astype(np.int64)
        if rows.min() < 0 or rows.max() >= sampler.num_examples:
            raise self._refusal(
                f"rows({step}) returned rows from {rows.min()} to {rows.max()} of {sampler.num_examples} examples",
                "Return rows from 0 to num_examples - 1: negative indices count from the end",
            )
        ordered = rows if (np.diff(rows) > 0).all() else np.unique(rows)
        if len(ordered) < len(rows):
            raise self._refusal(
                f"step {step} drew {len(rows)} rows, of which {len(rows) - len(ordered)} are repeated, so an "
                "example counts more than once",
                "Return each row at most once",
            )
        return ordered.astype(np.int64)

    def _claim(self, sampler: Sampler, step: int) -> _Claim:
        event = sampler.amplify(step, *_RELEASED)
        if event != sampler.amplify(step, *_RELEASED):
            raise self._refusal(
                f"amplify({step}) returned different events for the same arguments",
                "Make amplify depend only on the step and the events",
            )
        claim, released = _read(event)
        stated, whole = stated_multiplier(released), stated_multiplier(ComposedEvent(_RELEASED))
        if stated is None or whole is None:
            raise _UnknownClaimError(type(event).__name__)
        if stated > whole * (1 + 1e-9):
            raise self._refusal(
                f"amplify({step}) of two releases returned {event!r}, which costs less than they do",
                "Include all events that amplify receives: compose(events)",
            )
        if claim.partition is not None and not claim.rounds and not sampler.zeroes:
            raise self._refusal(
                "amplify states parts of a partition, which hold for zeroing out an example, but zeroes is False",
                "Set zeroes = True and relation = ZERO_OUT on the class",
            )
        return claim

    def _require_shares(self, drawn: _Drawn) -> None:
        """Test the number of rows, in total, per step and per region of the data, against the stated rates."""
        rates, examples = drawn.rates, drawn.sampler.num_examples
        sampled = np.flatnonzero(rates < 1)
        if not sampled.size:
            return
        sizes = np.array([len(drawn.rows[at]) for at in sampled])
        rates = rates[sampled]
        mean = float(rates.mean())
        self._require_share(sizes.sum(), examples * len(sizes), mean, f"drawn in {len(sizes)} steps")
        for at in np.flatnonzero(unlikely_share(sizes, examples, rates)):
            step = drawn.steps[sampled[at]]
            self._require_share(sizes[at], examples, float(rates[at]), f"drawn at step {step}")
        edges = np.unique(np.linspace(0, examples, min(_REGIONS, examples) + 1).astype(int))
        if examples <= _EXAMPLES:
            edges = np.arange(examples + 1)
        hits = np.histogram(np.concatenate([drawn.rows[at] for at in sampled]), edges)[0]
        trials = np.diff(edges) * len(sizes)
        for at in np.flatnonzero(unlikely_share(hits, trials, mean)):
            where = f"drawn of rows {edges[at]} to {edges[at + 1] - 1} in {len(sizes)} steps"
            self._require_share(hits[at], trials[at], mean, where)

    def _require_share(self, hits: float, trials: float, rate: float, where: str) -> None:
        if unlikely_share(hits, trials, rate):
            raise self._refusal(
                f"{int(hits):,} of {int(trials):,} were {where}, but amplify states a share of {rate:.6g}",
                "Draw each row independently, at the rate that amplify states",
            )

    def _require_independent(self, drawn: _Drawn) -> None:
        rates = drawn.rates[:, None]
        variances = rates * (1 - rates)
        apart = (drawn.members - rates) * (rates < 1)
        expected = float(variances.sum()) * _EXAMPLES
        spread = float(np.square(apart.sum(axis=1)).sum()) / expected
        if not _LEAST_VARIANCE < spread < _MOST_VARIANCE:
            raise self._refusal(
                f"the variance of the number of rows per step is {spread:.3g} times that of independent rows "
                f"(from {min(map(len, drawn.rows))} to {max(map(len, drawn.rows))} rows in {len(drawn.rows)} steps)",
                "Draw each row independently: batches of a fixed size are not Poisson sampling",
            )
        scale = float(np.square(np.broadcast_to(variances, apart.shape)).mean()) ** 0.25
        distance = repeated_at((apart / scale).ravel())
        if distance is not None:
            steps, rows = divmod(distance, _EXAMPLES)
            raise self._refusal(
                f"whether a row is drawn depends on the row that is {rows} further on, {steps} steps later",
                "Draw each row independently at each step",
            )

    def _require_parts(self, drawn: _Drawn) -> None:
        """Parts of a partition share no row, and only reserved partitions are used."""
        epochs = drawn.sampler.partitions(drawn.steps[-1] + 1)
        seen: dict[int, NDArray[np.bool_]] = {}
        for claim, rows, step in zip(drawn.claims, drawn.rows, drawn.steps, strict=True):
            if claim.partition is None:
                continue
            if not 0 <= claim.partition - _FIRST_PARTITION < epochs:
                raise self._refusal(
                    f"step {step} states partition {claim.partition}, but partitions {_FIRST_PARTITION} to "
                    f"{_FIRST_PARTITION + epochs - 1} were reserved for {epochs} epochs",
                    "Number partitions from first_partition on, one per epoch: runs on one ledger must share none",
                )
            known = seen.setdefault(claim.partition, np.zeros(drawn.sampler.num_examples, dtype=bool))
            if known[rows].any():
                raise self._refusal(
                    f"step {step} drew {int(known[rows].sum())} rows of an earlier step of partition "
                    f"{claim.partition}, for which the ledger charges an example only once",
                    "Draw each row at most once in each partition",
                )
            known[rows] = True

    def _require_secret(self, drawn: _Drawn) -> None:
        """Two fresh samplers share no more rows than expected by chance."""
        number, steps = drawn.sampler.num_examples, drawn.steps[:_COMPARED_STEPS]
        other = self._drawn(number, drawn.sampler.batch_size, steps)
        pairs = zip(drawn.rows, other.rows, strict=False)
        shared = sum(np.intersect1d(*pair, assume_unique=True).size for pair in pairs)
        share = float(np.square(other.rates).mean())
        if share < 1 and unlikely_share(shared, number * len(steps), share):
            raise self._refusal(
                f"two fresh samplers drew the same {shared:,} rows in {len(steps)} steps, so their seed is not secret",
                _SECRET,
            )

    def _require_untouched(self) -> None:
        """Refuse use of a public generator in every one of three draws; a single use may come from another thread."""
        names: set[str] | None = None
        for _ in range(3):
            with PublicGenerators() as public:
                self._rows(self.make(self.sampler.num_examples, self.sampler.batch_size, _FIRST_PARTITION), 0)
                names = set(public.moved()) if names is None else names & set(public.moved())
        if names:
            raise self._refusal(
                f"it uses the global generator of {', '.join(sorted(names))}, whose seed is public", _SECRET
            )

    def _require_uniform_groups(self) -> None:
        groups = self.unit.expected_units
        sampler = self.make(self.sampler.num_examples, self.sampler.batch_size, _FIRST_PARTITION)
        first, second = (np.asarray(sampler.group_ids(_GROUPED_ROWS, groups)) for _ in range(2))
        remedy = "Draw the group of each row independently and uniformly, as Sampler.group_ids does"
        for ids in (first, second):
            if ids.shape != (_GROUPED_ROWS,) or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= groups:
                raise self._refusal(
                    f"group_ids({_GROUPED_ROWS}, {groups}) did not return {_GROUPED_ROWS} group numbers from 0 to "
                    f"{groups - 1}",
                    remedy,
                )
            if unlikely_share(np.bincount(ids, minlength=groups), _GROUPED_ROWS, 1 / groups).any():
                raise self._refusal("groups of micro-batches are not drawn uniformly", remedy)
        if groups > 1:
            one, other = ((ids - (groups - 1) / 2) / math.sqrt((groups**2 - 1) / 12) for ids in (first, second))
            if alike(one, other) or repeated_at(one) is not None:
                raise self._refusal("the group of a row depends on its index in the batch or on other draws", remedy)

    def _refusal(self, finding: str, remedy: str) -> Exception:
        return refusal(self.sampler, finding, remedy)


def _read(event: PrivacyEvent) -> tuple[_Claim, PrivacyEvent]:
    """What an event states about the rows, and the event of what is released from them."""
    if isinstance(event, PoissonSampledEvent):
        return _Claim(rate=event.sampling_rate), event.event
    if isinstance(event, CorrelatedEvent):
        inner, released = _read(event.event)
        return _Claim(inner.rate, event.partition, isinstance(event.event, PoissonSampledEvent)), released
    if isinstance(event, DisjointEvent):
        return _Claim(partition=event.partition), event.event
    return _Claim(), event
