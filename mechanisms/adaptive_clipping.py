"""Adaptive clipping: the bound follows a quantile of the norms, learnt from a noisy count on the ledger."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mechanisms.clipping import CLIP, ClipMechanism, shrink
from mechanisms.rng import SecureGenerator
from monitors import checks
from monitors.events import GaussianEvent, PrivacyEvent
from monitors.registry import Registry

if TYPE_CHECKING:
    import torch

    from mechanisms.units import ClippedUnit

#: (bound, learning rate, unclipped fraction minus target) -> next bound
BOUND_UPDATES: Registry[Callable[[float, float, float], float]] = Registry("norm bound update")

#: By default, the bound stays within this factor of its initial value, in either direction.
DEFAULT_RANGE = 10.0

#: Keeps the update finite if the count is drowned in noise; the range of the bound ends far below it.
_LARGEST_EXPONENT = 700.0


@BOUND_UPDATES.register("Linear")
def linear_update(bound: float, learning_rate: float, excess: float) -> float:
    """``C - lr (fraction - target)``."""
    return bound - learning_rate * excess


@BOUND_UPDATES.register("Geometric")
def geometric_update(bound: float, learning_rate: float, excess: float) -> float:
    """``C exp(-lr (fraction - target))``."""
    return bound * math.exp(min(-learning_rate * excess, _LARGEST_EXPONENT))


@CLIP.register("Gaussian")
class QuantileClip(ClipMechanism):
    """Clip to a bound that tracks a quantile of the units' norms.

    In each step, the indicators ``1[norm <= bound]`` of the units are centred by 1/2 and summed. Noise of standard
    deviation ``fraction_stddev * expected_units`` is added, and the result is divided by the expected number of units
    (a public constant). The bound for the next step moves by the difference between that fraction and the target. The
    count is a separate event on the ledger.

    Edge cases: the bound never leaves [``min_norm_bound``, ``max_norm_bound``]. Without a floor, a median target would
    drive it to zero once most examples are well classified, and training would freeze. A unit with a non-finite norm
    counts as clipped. A step without examples is counted and charged like any other.

    Args:
        decay_policy: ``"Linear"`` or ``"Geometric"``; see ``linear_update`` and ``geometric_update``.
        learning_rate: Learning rate of the bound, positive.
        target_unclipped_quantile: Fraction of units that should stay unclipped, in [0, 1].
        fraction_stddev: Noise standard deviation of the released fraction (MindArmour's spelling), positive. The
            event's multiplier is ``fraction_stddev * expected_units`` over 1/2 for examples, and over 1 for micro-batch
            groups and shuffled batches.
        min_norm_bound: Smallest bound; default: a tenth of the initial one.
        max_norm_bound: Largest bound; default: ten times the initial one.
        seed: 0 for secret noise. Any other integer makes it reproducible and voids the guarantee (tests only).

    References:
        Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping", theorem 1.

    Example:
        >>> from mechanisms.units import ClippedUnit
        >>> QuantileClip(fraction_stddev=0.01).event(0, ClippedUnit(1, 500))
        GaussianEvent(noise_multiplier=10.0)
    """

    def __init__(
        self,
        decay_policy: str = "Linear",
        learning_rate: float = 0.001,
        target_unclipped_quantile: float = 0.9,
        fraction_stddev: float = 0.01,
        min_norm_bound: float | None = None,
        max_norm_bound: float | None = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        checks.positive(learning_rate=learning_rate, fraction_stddev=fraction_stddev)
        checks.unit_interval(target_unclipped_quantile=target_unclipped_quantile)
        self.decay_policy = decay_policy
        self._update = BOUND_UPDATES.get(decay_policy)
        self.learning_rate = float(learning_rate)
        self.target_unclipped_quantile = float(target_unclipped_quantile)
        self.fraction_stddev = float(fraction_stddev)
        self.min_norm_bound = min_norm_bound
        self.max_norm_bound = max_norm_bound
        self._stated_range = (min_norm_bound, max_norm_bound)
        self.generator = SecureGenerator(seed, purpose="clip")

    def start(self, norm_bound: float) -> None:
        """Set the initial bound and its public range.

        Raises:
            ValueError: The initial bound lies outside [min_norm_bound, max_norm_bound].
        """
        checks.positive(norm_bound=norm_bound)
        low, high = self._stated_range
        low = norm_bound / DEFAULT_RANGE if low is None else low
        high = norm_bound * DEFAULT_RANGE if high is None else high
        checks.positive(min_norm_bound=low, max_norm_bound=high)
        if not low <= norm_bound <= high:
            raise ValueError(
                f"norm_bound={norm_bound:g} must lie in [min_norm_bound, max_norm_bound] = [{low:g}, {high:g}]; widen "
                "the range or start inside it"
            )
        super().start(norm_bound)
        self.min_norm_bound, self.max_norm_bound = low, high

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the bound in force; the public range stays that of the initial bound.

        Raises:
            ValueError: The bound lies outside the range.
        """
        bound, low, high = state["norm_bound"], self.min_norm_bound, self.max_norm_bound
        if not self.started:
            self.start(bound)
        checks.positive(norm_bound=bound)
        if low is not None and high is not None and not low <= bound <= high:
            raise ValueError(
                f"norm_bound={bound:g} lies outside [min_norm_bound, max_norm_bound] = [{low:g}, {high:g}]"
            )
        self._norm_bound = float(bound)

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """``min(1, bound / norm)``, shape (units, 1)."""
        return shrink(norms, self.block_bounds(norms.shape[1]))

    def event(self, step: int, unit: ClippedUnit) -> PrivacyEvent:
        """The Gaussian event of the noisy count."""
        del step
        return GaussianEvent(self.fraction_stddev * unit.expected_units / unit.indicator_sensitivity)

    def update(self, norms: torch.Tensor, unit: ClippedUnit, step: int) -> None:
        """Move the bound by the noisy, centred count of unclipped units.

        Args:
            norms: Norms before clipping, shape (units, 1).
            unit: The clipped unit; the count is divided by its ``expected_units``.
            step: Step number (unused).
        """
        del step
        unclipped = int((norms <= self.norm_bound).sum())
        centred = unclipped - 0.5 * norms.shape[0]
        noisy = centred + self.generator.scalar_normal() * self.fraction_stddev * unit.expected_units
        excess = noisy / unit.expected_units + 0.5 - self.target_unclipped_quantile
        assert self.min_norm_bound is not None and self.max_norm_bound is not None  # noqa: PT018 - set by start
        proposed = self._update(self.norm_bound, self.learning_rate, excess)
        self._norm_bound = min(max(proposed, self.min_norm_bound), self.max_norm_bound)

    @property
    def reproducible(self) -> bool:
        """Whether a user's seed fixes the noise of the count."""
        return self.generator.reproducible

    @property
    def at_limit(self) -> str | None:
        """A message if the bound is at its floor or ceiling, else None."""
        for limit, name in ((self.min_norm_bound, "min_norm_bound"), (self.max_norm_bound, "max_norm_bound")):
            if self._norm_bound == limit:
                return (
                    f"the adaptive norm bound has reached {name}={limit:g}; the target quantile "
                    f"{self.target_unclipped_quantile:g} lies beyond it. Widen the range or change the target."
                )
        return None
