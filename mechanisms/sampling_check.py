"""What the privacy claim asks of a sampler, tried before anything is spent: rows against what ``amplify`` states."""

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
from monitors.events import ComposedEvent, DisjointEvent, GaussianEvent, PoissonSampledEvent, PrivacyEvent

#: ``(num_examples, batch_size, first_partition)`` -> a fresh sampler that is secret.
MakeSampler = Callable[[int, int, int], Sampler]

#: Data sets of the trial beside the real one: many steps of few rows.
_EXAMPLES, _BATCH, _STEPS = 256, 64, 256
#: Shares of the steps of which two samplers, or two steps, are compared.
_COMPARED_STEPS = 32
#: Rows that are looked at on the real data set, in all steps, and steps at most.
_REAL_ROWS, _REAL_STEPS = 1 << 20, 12
_REGIONS = 64
#: Variance of the batch size over that of independent rows: that many steps are never further off.
_LEAST_VARIANCE, _MOST_VARIANCE = 0.4, 2.0
_FIRST_PARTITION = 7
_GROUPED_ROWS = 4096
_SECRET = "Draw from self.generator, a SecureGenerator"
#: What stands for the releases of a step; two, since a step may release a sum and a count.
_RELEASED = (GaussianEvent(2.0), GaussianEvent(3.0))


def require_sound_sampler(
    make_sampler: MakeSampler, num_examples: int, batch_size: int, unit: ClippedUnit, steps: int = 1
) -> tuple[str, ...]:
    """Refuse a sampler whose rows are not drawn as ``amplify`` states.

    Fresh samplers are tried, on a small data set for many steps and on one of the real size for a few. Whatever is
    stated: rows are in range, and no row is drawn twice in a step. Poisson sampling: rate, each row's share, and
    independence of rows, steps and public seeds. Parts of a partition: no row is in two of them, and the partitions are
    those that the training has reserved. Groups of micro-batches are independent and uniform.

    A sampler that has passed is not tried again in the same process, see ``mechanisms.trial.once``.

    Args:
        make_sampler: Makes a fresh, secret sampler of ``num_examples``, ``batch_size`` and ``first_partition``.
        num_examples: Rows of the data set.
        batch_size: Expected rows per step.
        unit: The clipped unit.
        steps: Planned steps.

    Returns:
        Notes on what could not be tried.

    Raises:
        UnprotectedUpdateError: Rows are not drawn as stated; says what was counted and what to do.
    """
    fresh = make_sampler(num_examples, batch_size, 0)
    trial = _Trial(make_sampler, fresh, unit, steps)
    return once(fresh, ("sampler", unit, steps), trial)


@dataclass(frozen=True)
class _Claim:
    """What a step's event states of its rows."""

    rate: float = 1.0
    partition: int | None = None


@dataclass(frozen=True)
class _Drawn:
    """Rows of some steps of a fresh sampler, and what is stated of them."""

    sampler: Sampler
    steps: Sequence[int]
    rows: list[NDArray[np.int64]]
    claims: list[_Claim]

    @property
    def rates(self) -> Floats:
        return np.array([claim.rate for claim in self.claims])

    @property
    def members(self) -> Floats:
        """1 for a row that was drawn, else 0; shape (steps, rows)."""
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
        places = SecureGenerator().integers(self.steps, max(0, count - 3)) if self.steps > count else range(self.steps)
        chosen = sorted({0, min(1, self.steps - 1), self.steps - 1, *map(int, places)})
        drawn = self._drawn(self.sampler.num_examples, self.sampler.batch_size, chosen)
        self._require_shares(drawn)
        for at in range(1, len(drawn.rows)):
            share = drawn.rates[at - 1] * drawn.rates[at]
            common = np.intersect1d(drawn.rows[at - 1], drawn.rows[at], assume_unique=True).size
            if share < 1 and drawn.claims[at].partition is None:
                where = f"drawn at steps {drawn.steps[at - 1]} and {drawn.steps[at]} both"
                self._require_share(common, drawn.sampler.num_examples, share, where)
        self._require_parts(drawn)
        return drawn

    def _try_small(self) -> _Drawn | None:
        """Many steps of a small data set; None where the class does not take one."""
        try:
            probe = self.make(_EXAMPLES, _BATCH, _FIRST_PARTITION)
            probe.rows(0)
        except Exception:
            return None
        drawn = self._drawn(_EXAMPLES, _BATCH, range(_STEPS))
        self._require_shares(drawn)
        self._require_parts(drawn)
        if drawn.rates.min() < 1:
            self._require_independent(drawn)
        return drawn

    def _drawn(self, num_examples: int, batch_size: int, steps: Sequence[int]) -> _Drawn:
        sampler = self.make(num_examples, batch_size, _FIRST_PARTITION)
        claims, rows = [], []
        for step in steps:
            claims.append(self._claim(sampler, step))
            rows.append(self._rows(sampler, step))
        return _Drawn(sampler, steps, rows, claims)

    def _rows(self, sampler: Sampler, step: int) -> NDArray[np.int64]:
        try:
            rows = np.asarray(sampler.rows(step))
        except Exception as error:
            raise self._refusal(
                f"rows({step}) raised {type(error).__name__}: {error}", "Draw rows at each step"
            ) from error
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise self._refusal(
                f"rows({step}) gave shape {rows.shape} of {rows.dtype}", "Return whole numbers, one a row"
            )
        if not rows.size:
            return rows.astype(np.int64)
        if rows.min() < 0 or rows.max() >= sampler.num_examples:
            raise self._refusal(
                f"rows({step}) gave rows from {rows.min()} to {rows.max()} of {sampler.num_examples} examples",
                "Return rows from 0 to num_examples - 1: a negative one is another row counted from the end",
            )
        ordered = rows if (np.diff(rows) > 0).all() else np.unique(rows)
        if len(ordered) < len(rows):
            raise self._refusal(
                f"step {step} drew {len(rows)} rows of which {len(rows) - len(ordered)} are repeated, so an "
                "example counts more than once",
                "Return each row once at most",
            )
        return ordered.astype(np.int64)

    def _claim(self, sampler: Sampler, step: int) -> _Claim:
        event = sampler.amplify(step, *_RELEASED)
        if event != sampler.amplify(step, *_RELEASED):
            raise self._refusal(f"amplify({step}) gave two answers", "Let amplify follow the step and the events alone")
        claim, released = _read(event)
        stated, whole = stated_multiplier(released), stated_multiplier(ComposedEvent(_RELEASED))
        if stated is None or whole is None:
            raise _UnknownClaimError(type(event).__name__)
        if stated > whole * (1 + 1e-9):
            raise self._refusal(
                f"amplify({step}) of two releases stated {event!r}, which costs less than they do",
                "Keep all events that amplify is given: compose(events)",
            )
        if claim.partition is not None and not sampler.zeroes:
            raise self._refusal(
                "amplify states parts of a partition, which hold for zeroing an example out, but its zeroes is False",
                "Set zeroes = True and relation = ZERO_OUT on the class",
            )
        return claim

    def _require_shares(self, drawn: _Drawn) -> None:
        """Rows per step, in all, and by place in the data, against the rates that are stated."""
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
                f"{int(hits):,} of {int(trials):,} were {where}, where amplify states a share of {rate:.6g}",
                "Draw each row by a coin of its own, at the rate that amplify states",
            )

    def _require_independent(self, drawn: _Drawn) -> None:
        rates = drawn.rates[:, None]
        variances = rates * (1 - rates)
        apart = (drawn.members - rates) * (rates < 1)
        expected = float(variances.sum()) * _EXAMPLES
        spread = float(np.square(apart.sum(axis=1)).sum()) / expected
        if not _LEAST_VARIANCE < spread < _MOST_VARIANCE:
            raise self._refusal(
                f"the number of rows per step varies {spread:.3g} times as much as that of independent rows "
                f"(from {min(map(len, drawn.rows))} to {max(map(len, drawn.rows))} rows in {len(drawn.rows)} steps)",
                "Draw each row by a coin of its own: batches of a fixed size are not Poisson sampling",
            )
        scale = float(np.square(np.broadcast_to(variances, apart.shape)).mean()) ** 0.25
        distance = repeated_at((apart / scale).ravel())
        if distance is not None:
            steps, rows = divmod(distance, _EXAMPLES)
            raise self._refusal(
                f"whether a row is drawn depends on the row that is {rows} further on, {steps} steps later",
                "Draw each row at each step by a coin of its own",
            )

    def _require_parts(self, drawn: _Drawn) -> None:
        """Parts of a partition share no row, and the partitions are the ones that are reserved."""
        epochs = math.ceil((drawn.steps[-1] + 1) / drawn.sampler.steps_per_epoch)
        seen: dict[int, NDArray[np.bool_]] = {}
        for claim, rows, step in zip(drawn.claims, drawn.rows, drawn.steps, strict=True):
            if claim.partition is None:
                continue
            if not 0 <= claim.partition - _FIRST_PARTITION < epochs:
                raise self._refusal(
                    f"step {step} states partition {claim.partition}, but those from {_FIRST_PARTITION} to "
                    f"{_FIRST_PARTITION + epochs - 1} were reserved for {epochs} epochs",
                    "Count partitions from first_partition on, one an epoch: two trainings on one ledger share none",
                )
            known = seen.setdefault(claim.partition, np.zeros(drawn.sampler.num_examples, dtype=bool))
            if known[rows].any():
                raise self._refusal(
                    f"step {step} drew {int(known[rows].sum())} rows of an earlier step of partition "
                    f"{claim.partition}, for which the ledger charges an example once",
                    "Draw each row once at most in each partition",
                )
            known[rows] = True

    def _require_secret(self, drawn: _Drawn) -> None:
        """Two fresh samplers have no more rows in common than chance gives them."""
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
        """Another thread may have drawn meanwhile: only what happens each time is the sampler's doing."""
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
        remedy = "Give each row a group by an independent uniform draw, as Sampler.group_ids does"
        for ids in (first, second):
            if ids.shape != (_GROUPED_ROWS,) or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= groups:
                raise self._refusal(f"group_ids({_GROUPED_ROWS}, {groups}) gave no such numbers", remedy)
            if unlikely_share(np.bincount(ids, minlength=groups), _GROUPED_ROWS, 1 / groups).any():
                raise self._refusal("groups of micro-batches are not drawn uniformly", remedy)
        if groups > 1:
            one, other = ((ids - (groups - 1) / 2) / math.sqrt((groups**2 - 1) / 12) for ids in (first, second))
            if alike(one, other) or repeated_at(one) is not None:
                raise self._refusal("the group of a row depends on its place in the batch or on other draws", remedy)

    def _refusal(self, finding: str, remedy: str) -> Exception:
        return refusal(self.sampler, finding, remedy)


def _read(event: PrivacyEvent) -> tuple[_Claim, PrivacyEvent]:
    """What an event states of the rows, and what it states to be released of them."""
    if isinstance(event, PoissonSampledEvent):
        return _Claim(rate=event.sampling_rate), event.event
    if isinstance(event, DisjointEvent):
        return _Claim(partition=event.partition), event.event
    return _Claim(), event
