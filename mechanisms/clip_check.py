"""Trial of a clip mechanism, before any privacy is spent: does it meet the assumptions of the privacy claim?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechanisms.clipping import ClipMechanism
from mechanisms.engines.base import block_bounds_of
from mechanisms.normal_noise import stated_multiplier
from mechanisms.rng import SecureGenerator
from mechanisms.significance import Floats, unlikely_separation
from mechanisms.trial import once, preserve_position, refusal, trial_copy
from mechanisms.units import ClippedUnit
from monitors.errors import UnprotectedUpdateError
from monitors.events import NonPrivateEvent, PrivacyEvent

#: Type and device of the trial tensors, independent of torch's defaults.
_PLAIN: Any = {"dtype": torch.float32, "device": "cpu"}

#: Norms in the trial over the norm bound, both of clipped and of unclipped units.
_TRIAL_NORMS = (0.0, 0.03, 0.5, 1.0, 2.0, 40.0)
#: Numbers of units in one call of ``factors``.
_BATCHES = (6, 33, 65, 300)
#: Calls of ``factors`` between two calls that must agree, and the units in each.
_CALLS, _CALL_UNITS = 30, 64
#: Updates that choose a threshold between two data sets, and updates that are counted at that threshold.
_CHOOSING, _COUNTED = 24, 64
_MOST_UNITS = 1024
#: Updates in the search for a bound that follows the norms although the event is None.
_BLIND_UPDATES = 3
_TOLERANCE = 1e-5


def require_sound_clip(
    clip: ClipMechanism, names: Sequence[str], unit: ClippedUnit, steps: range = range(1), *, zeroed: bool = False
) -> tuple[str, ...]:
    """Refuse a mechanism in which one unit can move the sum by more than its clipped gradient, or without a charge.

    The trial uses copies of the mechanism, so its state and random stream do not change. It checks the factors (of
    each unit alone, in batches of several sizes, and after other batches), the bounds of the blocks, and the updates at
    the first and the last step: without an event, an update must not depend on the norms; with one, it must not reveal
    more about them than the event states. An update that reveals several times as much as stated is always found; one
    that reveals twice as much may not be.

    A mechanism that has passed is not tried again in the same process (see ``mechanisms.trial.once``).

    Args:
        clip: A started clip mechanism.
        names: Names of the trained parameters, in order.
        unit: The clipped unit.
        steps: The planned steps.
        zeroed: Whether neighbouring data sets differ by an example whose gradient is zeroed.

    Returns:
        Notes on what could not be tried.

    Raises:
        UnprotectedUpdateError: A unit's factors depend on other units or on earlier calls, the bounds of the blocks
            together exceed the norm bound, or the next bound reveals more about the norms than the event states.
    """
    trial = _Trial(clip, tuple(clip.blocks(names)), unit, steps, zeroed)
    with preserve_position(clip):
        return once(clip, ("clip", trial.block_of, unit, steps[0], steps[-1], zeroed), trial)


@dataclass(frozen=True)
class _Trial:
    mechanism: ClipMechanism
    block_of: tuple[int, ...]
    unit: ClippedUnit
    steps: range
    zeroed: bool

    def __call__(self) -> tuple[str, ...]:
        block_bounds_of(self.mechanism, self._blocks)
        self._require_own_factors()
        self._require_no_memory()
        notes = [self._try_update(step) for step in dict.fromkeys((self.steps[0], self.steps[-1]))]
        return tuple(dict.fromkeys(filter(None, notes)))

    @property
    def _blocks(self) -> int:
        return max(self.block_of) + 1

    @property
    def _norms(self) -> Tensor:
        """Norms of the trial units, shape (units, blocks)."""
        scale = torch.tensor(_TRIAL_NORMS, **_PLAIN).unsqueeze(1) * torch.linspace(1.0, 1.5, self._blocks, **_PLAIN)
        return scale * self.mechanism.norm_bound

    def _require_own_factors(self) -> None:
        """Each unit's factors do not depend on which other units are in the batch."""
        norms, twin = self._norms, trial_copy(self.mechanism)
        alone = torch.cat([twin.factors(row.clone()) for row in norms.split(1)])
        if alone.shape != norms.shape:
            raise self._dependent_factors(norms)
        negative = alone < 0
        if negative.any():
            raise self._refusal(
                f"factors gave {float(alone[negative][0]):g} for a norm of {float(norms[negative][0]):g}",
                "Return factors of at least 0: a negative one reverses a gradient",
            )
        generator = SecureGenerator()
        for size in _BATCHES:
            for known in (len(norms) - 2, len(norms)):  # without the largest norms, and with them
                rows = torch.from_numpy(generator.integers(known, size))
                together = twin.factors(norms[rows])
                same = together.shape == (size, self._blocks) and torch.allclose(
                    together, alone[rows], rtol=_TOLERANCE, atol=0.0, equal_nan=True
                )
                if not same:
                    raise self._dependent_factors(norms)

    def _dependent_factors(self, norms: Tensor) -> Exception:
        return UnprotectedUpdateError(
            f"{type(self.mechanism).__name__}.factors gives a unit a different factor when other units are present, so "
            "one example would change the contributions of all others, not only its own clipped gradient. Make each "
            f"row of the factors depend only on the same row of the norms (shape {tuple(norms.shape)})"
        )

    def _require_no_memory(self) -> None:
        """Between two updates, factors do not depend on earlier calls: neither on their norms nor on their number."""
        norms, twin = self._norms, trial_copy(self.mechanism)
        before = twin.factors(norms.clone())
        for size in (1e-3, 1.0, 1e3):
            others = torch.full((_CALL_UNITS, self._blocks), size * twin.norm_bound)
            for _ in range(_CALLS):
                twin.factors(others.clone())
            if not torch.allclose(twin.factors(norms.clone()), before, rtol=_TOLERANCE, atol=0.0, equal_nan=True):
                raise self._refusal(
                    f"the factors for the same norms changed after {_CALLS} calls with norms of {size:g} times the "
                    "bound, so they depend on earlier batches",
                    "Make factors depend only on its argument and the bound in force, and learn from norms in update",
                )

    def _try_update(self, step: int) -> str | None:
        event = self._event(self.mechanism, step)
        if event is None:
            return self._try_blind_update(step)
        if isinstance(event, NonPrivateEvent):
            return None
        stated = stated_multiplier(event)
        if stated is None:
            return (
                f"the update of {type(self.mechanism).__name__} was not tried: its event ({type(event).__name__}) does "
                "not state normal noise"
            )
        for first, second, mu in self._neighbours(stated):
            self._require_private_update(first, second, mu, step)
        return None

    def _event(self, clip: ClipMechanism, step: int) -> PrivacyEvent | None:
        return clip.event(step, replace(self.unit, zeroed=self.zeroed))

    def _try_blind_update(self, step: int) -> str | None:
        """Copies that saw different norms in ``factors`` must arrive at the same bound."""
        small, large = (torch.full((_BATCHES[-1], self._blocks), size * self.mechanism.norm_bound) for size in (0.1, 3))
        seen, again, other = (self._after_blind_updates(norms, step) for norms in (small, small, large))
        if not np.array_equal(seen, again, equal_nan=True):
            return f"the update of {type(self.mechanism).__name__} was not tried: it is random, and its event is None"
        if not np.array_equal(seen, other, equal_nan=True):
            raise UnprotectedUpdateError(
                f"{type(self.mechanism).__name__}.update uses the norms that factors received, but its event is None, "
                f"so nothing is charged for it. State what it releases in event, or make the bound depend only on "
                f"the step (bounds of {seen[0]:g} and {other[0]:g} after different norms)"
            )
        return None

    def _after_blind_updates(self, norms: Tensor, step: int) -> Floats:
        twin = trial_copy(self.mechanism)
        for at in range(step, step + _BLIND_UPDATES):
            twin.factors(norms.clone())
            try:
                twin.update(norms[:0], self.unit, at)
            except Exception as error:
                raise UnprotectedUpdateError(
                    f"{type(twin).__name__}.update uses the norms of the examples, but its event is None, so nothing "
                    "is charged for it. State what it releases in event, or make the bound depend only on the step "
                    f"({error})"
                ) from error
        return self._outcome(twin)

    def _outcome(self, twin: ClipMechanism) -> Floats:
        """Everything that later steps see of an update: the bound, the bounds of the blocks, and factors."""
        if not (math.isfinite(twin.norm_bound) and twin.norm_bound > 0):
            raise self._refusal(
                f"update left a norm bound of {twin.norm_bound:g}", "Keep the bound positive by a public floor"
            )
        bounds = [twin.norm_bound, *twin.block_bounds(self._blocks)]
        return np.concatenate([bounds, twin.factors(self._norms).double().numpy().ravel()])

    def _neighbours(self, stated: float) -> list[tuple[Tensor, Tensor, float]]:
        """Pairs of norms of data sets that differ in some units, each with the ``mu`` that the event states for it."""
        units = min(self.unit.expected_units, _MOST_UNITS)
        changed = min(max(1, round(stated)), max(1, units // 2))
        spread = torch.linspace(-3.0, 3.0, units, **_PLAIN) if units > 1 else torch.zeros(1, **_PLAIN)
        norms = self.mechanism.norm_bound * spread.exp().unsqueeze(1).expand(units, self._blocks)
        pairs = []
        for rows in (slice(changed), slice(units - changed, units)):
            other = norms.clone()
            if self.unit.grouped:
                other[rows] = norms[units - 1] if rows.start is None else norms[0]
            elif self.zeroed:
                other[rows] = 0.0
            else:
                other = torch.cat([norms[: rows.start or 0], norms[rows.stop :]])
            pairs.append((norms.clone(), other, changed / stated))
        return pairs

    def _require_private_update(self, first: Tensor, second: Tensor, mu: float, step: int) -> None:
        """Updates from one state on two data sets, in random order, are no further apart than ``mu``."""
        twin = trial_copy(self.mechanism)
        state, event = twin.state_dict(), self._event(twin, step)
        outcomes: tuple[list[Floats], list[Floats]] = ([], [])
        order = SecureGenerator().permutation(2 * (_CHOOSING + _COUNTED)) % 2
        for side in order.tolist():
            twin.load_state_dict(state)
            norms = (first, second)[side]
            twin.factors(norms.clone())
            twin.update(norms.clone(), self.unit, step)
            outcomes[side].append(self._outcome(twin))
        if self._event(twin, step) != event:
            raise self._refusal("event changed after updates", "Make event depend only on the step and the unit")
        for ones, others in zip(np.stack(outcomes[0]).T, np.stack(outcomes[1]).T, strict=True):
            threshold = _best_threshold(ones[:_CHOOSING], others[:_CHOOSING])
            above, others_above = (int((side[_CHOOSING:] > threshold).sum()) for side in (ones, others))
            if unlikely_separation(above, others_above, _COUNTED, mu):
                raise self._refusal(
                    f"update reveals more about the norms than its event {event!r} states: out of {_COUNTED} updates "
                    f"each, {above} and {others_above} left a value above {threshold:.6g} for norms that differ in "
                    f"{abs(len(first) - len(second)) or int((first != second).any(dim=1).sum())} units",
                    "Add the noise that the event states to whatever is learnt from the norms, or state the true cost",
                )

    def _refusal(self, finding: str, remedy: str) -> Exception:
        return refusal(self.mechanism, finding, remedy)


def _best_threshold(ones: Floats, others: Floats) -> float:
    """The threshold above which the shares of two samples differ most."""
    values = np.unique(np.concatenate([ones, others]))
    shares = [np.searchsorted(np.sort(side), values, side="right") / len(side) for side in (ones, others)]
    best = int(np.abs(shares[0] - shares[1]).argmax())
    above = values[min(best + 1, len(values) - 1)]
    return float((values[best] + above) / 2) if above > values[best] else float(values[best])
