"""Trial of a noise mechanism, before any privacy is spent: are its samples what its event states?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from mechanisms.engines.base import ClippedSum
from mechanisms.engines.tally import Tally
from mechanisms.noise import NoiseMechanism
from mechanisms.normal_noise import stated_multiplier
from mechanisms.overriding import speaks_for
from mechanisms.rng import SecureGenerator
from mechanisms.significance import SIGMAS, Floats, alike, repeated_at, unlikely_share, unlikely_spread
from mechanisms.trial import PublicGenerators, once, preserve_position, refusal, trial_copy
from mechanisms.units import ClippedUnit
from monitors.events import NonPrivateEvent, PrivacyEvent

#: Most draws of one copy of the mechanism, each at a different step, and the total number of samples in them.
_DRAWS, _NUMBERS = 24, 24 * 2048
#: The same for long vectors, which reveal a scale that is 1 % off.
_LONG_DRAWS, _LONG_NUMBERS = 4, 1 << 19
#: Squares in the smallest block of coordinates that is tested separately.
_BLOCK = 32
_LONG_BLOCK = 512
_NORM_BOUNDS = (1.0, 0.01)
#: Entries of the sums to which noise is added: constant part and random part, in standard deviations of the noise.
_SUMS = {
    "of zeros": (0.0, 0.0),
    "that is constant": (3.0, 0.0),
    "that is random": (0.0, 10.0),
    "that is huge": (0.0, 1e3),
}
_FEWEST_FOR_DISTANCES, _LONGEST_FOR_DISTANCES = 1000, 1 << 17
#: With this many draws, no coordinate's noise is always rounded away; with fewer, at most this share of coordinates is.
_ENOUGH_DRAWS, _ROUNDED_AWAY = 8, 0.01
_BINS, _LAST_EDGE = 28, 3.5


def require_sound_noise(
    noise: NoiseMechanism,
    unit: ClippedUnit,
    steps: range = range(1),
    *,
    norm_bound: float = 1.0,
    like: Tensor | None = None,
) -> tuple[str, ...]:
    """Refuse a noise mechanism whose samples are not what its event states.

    The trial uses copies of the mechanism, so its state and random stream do not change. It covers the first and the
    last step and secretly chosen ones in between, several norm bounds, and several kinds of sums. It tests scale, mean,
    distribution, independence (of steps, coordinates, the sum and the norms), and the use of public seeds.

    A mechanism that has passed is not tried again in the same process (see ``mechanisms.trial.once``).

    Args:
        noise: The noise mechanism; one that claims no privacy is not tried.
        unit: The clipped unit.
        steps: The planned steps.
        norm_bound: The clip mechanism's bound in force.
        like: A vector with the size, type and device of the real sum; default: an empty float32 vector on the CPU.

    Returns:
        Notes on what could not be tried.

    Raises:
        UnprotectedUpdateError: The noise is not what the event states; the message says what was measured and what to
            do.
    """
    like = torch.zeros(0, dtype=torch.float32, device="cpu") if like is None else like
    trial = _Trial(noise, unit, steps, norm_bound, like)
    shape = (like.dtype, like.device.type, like.numel())
    with preserve_position(noise):
        return once(noise, ("noise", unit, steps[0], steps[-1], norm_bound, shape), trial)


class _FailedError(Exception):
    """A copy of the mechanism did not return a noisy sum."""


@dataclass(frozen=True)
class _Draw:
    step: int
    norm_bound: float
    sum_name: str

    @property
    def traits(self) -> tuple[str, ...]:
        return f"at norm bound {self.norm_bound:g}", f"for a sum {self.sum_name}", f"at step {self.step}"


@dataclass(frozen=True)
class _Samples:
    """Noise of one copy over the stated standard deviation, shape (draws, n), and the random part of the sums."""

    draws: tuple[_Draw, ...]
    noise: Floats
    sums: Floats


@dataclass(frozen=True)
class _Trial:
    mechanism: NoiseMechanism
    unit: ClippedUnit
    steps: range
    norm_bound: float
    like: Tensor

    def __call__(self) -> tuple[str, ...]:
        tried = _tried_steps(self.steps, _DRAWS) if self.mechanism.bands == 1 else self.steps[:_DRAWS]
        steps = list(filter(self._states_event, tried))
        events = self._events(steps)
        if any(isinstance(event, NonPrivateEvent) for event in events):
            return ()
        known = all(stated_multiplier(event) is not None for event in events)
        if self.mechanism.bands != 1:
            self._require_banded(known)
        with PublicGenerators(self.like.device) as public:
            try:
                self._try(None, steps, known)
            except _FailedError as error:
                if not self.like.numel():
                    raise self._failure(error) from error
                try:  # the mechanism may support only vectors of the network's size
                    self._try(self.like.numel(), steps, known)
                except _FailedError as error:
                    raise self._failure(error) from error
            moved = public.moved()
        if moved:
            self._require_untouched(steps)
        if self._events(steps) != events:
            raise self._refusal(
                "event returned different events for the same step",
                "Make event depend only on the step and the sensitivity factor",
            )
        if known:
            self._require_same_scale(steps)
            return ()
        name, kinds = type(self.mechanism).__name__, ", ".join(sorted({type(event).__name__ for event in events}))
        return (f"the scale of the noise of {name} was not tried: its event ({kinds}) does not state normal noise",)

    def _try(self, size: int | None, steps: Sequence[int], known: bool) -> None:
        """All tests, on vectors of ``size``; None chooses suitable sizes."""
        cases = [(bound, name) for bound, name in product(dict.fromkeys((*_NORM_BOUNDS, self.norm_bound)), _SUMS)]
        rounds = math.ceil(len(cases) / len(steps))
        self._require_secret(size or _NUMBERS // _DRAWS, steps[-1])
        for number in range(rounds):
            taken = [cases[(number * len(steps) + at) % len(cases)] for at in range(len(steps))]
            samples = self._samples(size or _NUMBERS // len(steps), steps, taken)
            self._require_drawn(samples)
            if not known:
                self._require_new(samples)
            else:
                self._require_normal(samples, max(1, _BLOCK // len(steps)))
                self._require_independent(samples, with_neighbours=not number)
        if len(steps) == 1:
            self._require_new_noise_later(size or _NUMBERS // _DRAWS, steps[0])
        if known:
            few = self._few(steps)
            mixed = [cases[(5 * at) % len(cases)] for at in range(len(few))]
            samples = self._samples(size or _LONG_NUMBERS // len(few), few, mixed)
            self._require_normal(samples, _LONG_BLOCK // len(few))
            self._require_no_repetition(samples)

    def _few(self, steps: Sequence[int]) -> list[int]:
        """At most ``_LONG_DRAWS`` of the tried steps, with the first and the last; correlated noise needs the first."""
        if self.mechanism.bands != 1:
            return list(steps[:_LONG_DRAWS])
        return [steps[at] for at in sorted({at * (len(steps) - 1) // (_LONG_DRAWS - 1) for at in range(_LONG_DRAWS)})]

    def _states_event(self, step: int) -> bool:
        """Whether ``step`` has an event; a schedule that has reached zero has none, and ends the training there."""
        try:
            self.mechanism.event(step, self.unit.sensitivity_factor)
        except ValueError:
            if step == self.steps[0]:
                raise
            return False
        return True

    def _events(self, steps: Sequence[int]) -> list[PrivacyEvent]:
        return [self.mechanism.event(step, self.unit.sensitivity_factor) for step in steps]

    def _require_same_scale(self, steps: Sequence[int]) -> None:
        for step in steps if speaks_for(self.mechanism, "added_scale", "add") else ():
            said, event = self.mechanism.added_scale(step, self.norm_bound), self._events([step])[0]
            scale = (stated_multiplier(event) or 0.0) * self.unit.sensitivity_factor * self.norm_bound
            if said is not None and not math.isclose(said, scale, rel_tol=1e-9):
                finding = f"added_scale returned {said:g} at step {step}, but the event states {scale:g}"
                raise self._refusal(finding, "Let both follow from the same schedule")

    def _samples(self, size: int, steps: Sequence[int], cases: Sequence[tuple[float, str]]) -> _Samples:
        twin, sums = trial_copy(self.mechanism), SecureGenerator().normal(size)
        draws = tuple(_Draw(step, *case) for step, case in zip(steps, cases, strict=True))
        noise = twin.innovations(np.stack([self._noise(twin, draw, sums) for draw in draws]))
        return _Samples(draws, noise, sums.numpy())

    def _noise(self, twin: NoiseMechanism, draw: _Draw, pattern: Tensor) -> Floats:
        """The noise that ``twin`` adds to a sum, over the standard deviation that its event states, shape (n,)."""
        factor = self.unit.sensitivity_factor
        stated = stated_multiplier(twin.event(draw.step, factor))
        scale = (1.0 if stated is None else stated * factor) * draw.norm_bound
        constant, random = _SUMS[draw.sum_name]
        total = pattern.mul(random).add_(constant).mul_(scale).to(self.like)
        units = (
            torch.zeros(0, dtype=torch.float32, device="cpu")
            if constant
            else pattern.abs()[: self.unit.expected_units] * (random + 0.1)
        )
        summed = ClippedSum(
            flat_grad=total.clone(),
            norms=(units.unsqueeze(1) * draw.norm_bound).to(self.like),
            sensitivity=factor * draw.norm_bound,
            norm_bound=draw.norm_bound,
            tally=Tally.of(random),
        )
        try:
            noisy = twin.add(summed, draw.step)
        except Exception as error:
            raise _FailedError(f"raised {type(error).__name__} at step {draw.step}: {error}") from error
        given, expected = _described(noisy), _described(total)
        if given != expected:
            raise _FailedError(f"returned {given} for a sum that is {expected}")
        return noisy.detach().cpu().double().sub_(total.cpu().double()).div_(scale).numpy()

    def _require_secret(self, size: int, step: int) -> None:
        if self.mechanism.generator.reproducible:
            return
        pattern, draw = torch.zeros(size, dtype=torch.float64, device="cpu"), _Draw(step, 1.0, "of zeros")
        first, second = (self._noise(trial_copy(self.mechanism), draw, pattern) for _ in range(2))
        if alike(first, second) or alike(*(_blocks(noise, _BLOCK * 4) for noise in (first, second))).any():
            raise self._refusal(
                f"two copies of it drew the same noise at step {step}, so the noise follows from a seed or a state "
                "that is not secret",
                "Draw from self.generator, a SecureGenerator, whose copies each get a fresh key",
            )

    def _require_untouched(self, steps: Sequence[int]) -> None:
        """Refuse use of a public generator in every one of three draws; a single use may come from another thread."""
        names: set[str] | None = None
        for at in range(3):
            draw = _Draw(steps[-1 - at % len(steps)], 1.0, "of zeros")
            with PublicGenerators(self.like.device) as public:
                self._noise(
                    trial_copy(self.mechanism),
                    draw,
                    torch.zeros(self.like.numel() or 64, dtype=torch.float64, device="cpu"),
                )
                names = set(public.moved()) if names is None else names & set(public.moved())
        if names:
            raise self._refusal(
                f"it uses the global generator of {', '.join(sorted(names))}, whose seed is public",
                "Draw from self.generator, a SecureGenerator",
            )

    def _require_drawn(self, samples: _Samples) -> None:
        """Every coordinate has noise."""
        silent, draws = ~samples.noise.any(axis=0), len(samples.draws)
        # When added to a huge sum, about one noise value in ten thousand is small enough to be rounded away.
        if silent.any() if draws >= _ENOUGH_DRAWS else silent.mean() > _ROUNDED_AWAY:
            raise self._refusal(
                f"{int(silent.sum()):,} of {silent.size:,} coordinates got no noise in {draws} draws",
                "Add noise to every coordinate of the sum",
            )

    def _require_new(self, samples: _Samples) -> None:
        """No two steps have the same noise, whatever its distribution."""
        for at, row in enumerate(samples.noise[1:], start=1):
            same = np.flatnonzero(((samples.noise[:at] == row) & (row != 0)).mean(axis=1) > 0.5)
            if same.size:
                raise self._same_noise(samples.draws[same[0]], samples.draws[at])

    def _require_new_noise_later(self, size: int, step: int) -> None:
        """A run of one step may be followed by another run, whose steps are not planned yet."""
        try:
            samples = self._samples(size, (step, step + 1), 2 * [(1.0, "of zeros")])
        except Exception:
            return  # the mechanism may support no further step
        self._require_new(samples)

    def _require_normal(self, samples: _Samples, block: int) -> None:
        """Scale and mean, overall and by norm bound, sum, step and coordinates; distribution; no two draws alike."""
        squares = np.square(samples.noise)
        # Repeated noise, or noise that follows the sum, also has a wrong scale: report the actual fault first.
        self._require_unlike(samples, [at for at, draw in enumerate(samples.draws) if not any(_SUMS[draw.sum_name])])
        self._require_scale(samples.draws, squares)
        self._require_unlike(samples, range(len(samples.draws)))
        blocks = _blocks(squares.sum(axis=0), block)
        by_place, block = blocks.sum(axis=1), blocks.shape[1]
        count = block * len(samples.draws)
        off = unlikely_spread(by_place, count)
        if off.any():
            worst = int(np.argmax(np.where(off, np.abs(np.log(by_place / count + 1e-300)), -1.0)))
            raise self._scale_refusal(
                by_place[worst] / count, f"for coordinates {worst * block} to {(worst + 1) * block - 1}", count
            )
        means = _blocks(samples.noise.sum(axis=0), block).sum(axis=1) / math.sqrt(count)
        whole = np.atleast_1d(samples.noise.sum()) / math.sqrt(samples.noise.size)
        by_draw = samples.noise.sum(axis=1) / math.sqrt(samples.noise.shape[1])
        for sums, numbers in ((whole, samples.noise.size), (by_draw, samples.noise.shape[1]), (means, count)):
            if np.abs(sums).max() > SIGMAS:
                mean = sums[np.abs(sums).argmax()] / math.sqrt(numbers)
                raise self._refusal(
                    f"the mean of {numbers:,} samples is {mean:.4g} of the stated standard deviation",
                    "Make add return the sum plus noise of mean zero",
                )
        self._require_distribution(samples)

    def _require_unlike(self, samples: _Samples, among: Sequence[int]) -> None:
        for number, at in enumerate(among):
            earlier = [among[before] for before in range(number)]
            same = np.flatnonzero(alike(samples.noise[earlier], samples.noise[at]))
            if same.size:
                raise self._same_noise(samples.draws[earlier[same[0]]], samples.draws[at])

    def _require_scale(self, draws: tuple[_Draw, ...], squares: Floats) -> None:
        sums, size = squares.sum(axis=1), squares.shape[1]
        groups: dict[str, list[int]] = {"at all steps": list(range(len(draws)))}
        for at, draw in enumerate(draws):
            for trait in draw.traits:
                groups.setdefault(trait, []).append(at)
        found = {}
        for name, rows in groups.items():
            total, count = float(sums[rows].sum()), len(rows) * size
            if unlikely_spread(total, count):
                found[name] = (total / count, count)
        if found:
            # Name the trait whose scale is certainly furthest off, or all steps if the scale is as far off overall.
            distance = {name: abs(math.log(ratio + 1e-300)) for name, (ratio, _) in found.items()}
            error = {name: SIGMAS / math.sqrt(count) for name, (_, count) in found.items()}
            name = max(found, key=lambda name: distance[name] - error[name])
            everywhere = next(iter(groups))
            if everywhere in found and distance[everywhere] + error[everywhere] >= distance[name] - error[name]:
                name = everywhere
            raise self._scale_refusal(found[name][0], name, found[name][1])

    def _require_banded(self, known: bool) -> None:
        """The noise is normal, and one participation moves the independent noise by at most 1, in ``bands`` steps."""
        bands = int(self.mechanism.bands)
        matrix = trial_copy(self.mechanism).innovations(np.eye(2 * bands))  # C, by linearity
        outside = np.abs(np.triu(matrix, 1) + np.tril(matrix, -bands)).max()
        longest = float(np.linalg.norm(matrix, axis=0).max())
        if not known or outside > 1e-9 or not longest <= 1 + 1e-9:
            found = (
                f"innovations(identity) has columns of norm {longest:.6g}, and {outside:.3g} outside of {bands} bands"
            )
            raise self._refusal(
                found if known else "its event does not state normal noise",
                "Correlated noise costs what the event states if it is normal noise C^-1 z, for a lower-triangular C "
                "with that many diagonals and columns of norm at most 1",
            )

    def _require_independent(self, samples: _Samples, *, with_neighbours: bool) -> None:
        noise = samples.noise
        if alike(noise, samples.sums).any():
            raise self._refusal("its noise depends on the sum", "Make add return the sum plus independent noise")
        for values in (noise.ravel(), _folded(noise).ravel()) if with_neighbours else ():
            distance = repeated_at(values) if values.size >= _FEWEST_FOR_DISTANCES else None
            if distance is not None:
                raise self._refusal(
                    f"samples depend on others at a distance of {distance} (coordinates of consecutive steps)",
                    "Draw each sample independently",
                )

    def _require_distribution(self, samples: _Samples) -> None:
        from scipy.special import ndtr

        numbers = samples.noise.size
        seen, edges = np.histogram(samples.noise, _BINS, (-_LAST_EDGE, _LAST_EDGE))
        below = np.concatenate([[np.count_nonzero(samples.noise < edges[0])], seen]).cumsum()
        stated = ndtr(edges)
        off = np.flatnonzero(unlikely_share(below, numbers, stated))
        inside = np.flatnonzero(unlikely_share(seen, numbers, np.diff(stated)))
        tail = numbers - below[-1], 1.0 - stated[-1]
        if off.size or inside.size or unlikely_share(tail[0], numbers, tail[1]):
            edge = int(off[0]) if off.size else int(inside[0] if inside.size else -1)
            raise self._refusal(
                f"its samples are not normal: {below[edge] / numbers:.4%} of {numbers:,} lie below "
                f"{edges[edge]:g} standard deviations, but the event states {stated[edge]:.4%}",
                "Draw normal noise, or state an event for the noise that is drawn",
            )

    def _require_no_repetition(self, samples: _Samples) -> None:
        first = np.ascontiguousarray(samples.noise[0][:_LONGEST_FOR_DISTANCES])
        distance = repeated_at(first) if first.size >= _FEWEST_FOR_DISTANCES else None
        if distance is not None:
            raise self._refusal(
                f"coordinates depend on others at a distance of {distance}", "Draw each coordinate independently"
            )

    def _scale_refusal(self, ratio: float, where: str, count: int) -> Exception:
        factor, step = self.unit.sensitivity_factor, self.steps[0]
        remedy = "Draw noise of standard deviation noise_multiplier(step) * summed.norm_bound, and state that in event"
        if factor != 1 and self.mechanism.event(step, factor) == self.mechanism.event(step, 1.0):
            remedy = (
                f"Divide the multiplier in event by sensitivity_factor: one example of a micro-batch can move the sum "
                f"by {factor:g} times the norm bound"
            )
        return self._refusal(
            f"{where}, the standard deviation of {count:,} samples is {math.sqrt(ratio):.4g} times the stated one",
            remedy,
        )

    def _same_noise(self, one: _Draw, other: _Draw) -> Exception:
        return self._refusal(
            f"steps {one.step} and {other.step} got the same noise, or dependent noise",
            "Draw fresh noise at each step: noise known from one release can be subtracted from another",
        )

    def _failure(self, error: Exception) -> Exception:
        return self._refusal(f"add {error}", "Make add return the sum plus noise, with the sum's size, type and device")

    def _refusal(self, finding: str, remedy: str) -> Exception:
        return refusal(self.mechanism, finding, remedy)


def _tried_steps(steps: range, count: int) -> list[int]:
    """The first step, the last step and secretly chosen ones, ascending; all steps if there are at most ``count``."""
    if len(steps) <= count:
        return list(steps)
    chosen, generator = {0, len(steps) - 1}, SecureGenerator()
    while len(chosen) < count:
        chosen.update(generator.integers(len(steps), count - len(chosen)).tolist())
    return [steps[at] for at in sorted(chosen)]


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{value.dtype}, shape {tuple(value.shape)}, on {value.device.type}"


def _blocks(values: Floats, size: int) -> Floats:
    """Blocks of consecutive coordinates, shape (blocks, size); the last block overlaps if ``size`` does not divide."""
    count = len(values)
    size = min(size, count)
    whole = values[: count - count % size].reshape(-1, size)
    return whole if not count % size else np.concatenate([whole, values[None, count - size :]])


def _folded(noise: Floats) -> Floats:
    """Absolute values, standardised to mean 0 and variance 1; values that differ only in sign become equal."""
    mean = math.sqrt(2 / math.pi)
    return (np.abs(noise) - mean) / math.sqrt(1 - mean**2)
