"""The clipped unit: one example, or one group of examples (a MindArmour micro-batch)."""

from __future__ import annotations

from dataclasses import dataclass

from monitors import checks


@dataclass(frozen=True)
class ClippedUnit:
    """What is clipped as one vector, and how far one example can therefore move the sum.

    A unit of one example is that example's gradient. A unit of ``group_size`` > 1 examples is the sum of its members'
    gradients over the constant ``group_size``. Each drawn example joins a group by an independent uniform draw, so
    groups may be uneven or empty, and no example's group depends on other examples. One example can then turn a
    clipped vector into any other, hence the factor 2.

    Args:
        group_size: Expected number of examples per unit, at least 1.
        expected_units: Number of units per step, a public constant by which the noisy sum is divided.
        zeroed: Whether neighbouring data sets differ by zeroing an example's gradient, not by adding or removing it.

    Example:
        >>> ClippedUnit(1, 256).sensitivity_factor, ClippedUnit(8, 32).sensitivity_factor
        (1.0, 2.0)
    """

    group_size: int
    expected_units: int
    zeroed: bool = False

    def __post_init__(self) -> None:
        checks.positive_int(group_size=self.group_size, expected_units=self.expected_units)

    @classmethod
    def of(cls, batch_size: int, micro_batches: int | None = None) -> ClippedUnit:
        """The unit for ``micro_batches`` groups per batch; None means that each example is clipped separately.

        Raises:
            ValueError: ``batch_size`` is not a multiple of ``micro_batches``.

        Example:
            >>> ClippedUnit.of(256, 32)
            ClippedUnit(group_size=8, expected_units=32, zeroed=False)
        """
        checks.positive_int(batch_size=batch_size)
        if micro_batches is None:
            return cls(1, batch_size)
        checks.positive_int(micro_batches=micro_batches)
        if batch_size % micro_batches:
            raise ValueError(
                f"batch_size={batch_size} must be a multiple of micro_batches={micro_batches}; "
                f"use micro_batches={_nearest_divisor(batch_size, micro_batches)}, or None to clip examples separately"
            )
        return cls(batch_size // micro_batches, micro_batches)

    @property
    def grouped(self) -> bool:
        """Whether a unit holds more than one example."""
        return self.group_size > 1

    @property
    def sensitivity_factor(self) -> float:
        """L2 sensitivity of the sum of clipped units, over the norm bound, for adding or removing one example."""
        return 2.0 if self.grouped else 1.0

    @property
    def indicator_sensitivity(self) -> float:
        """Largest change that one example makes to the sum of the centred indicators ``1[norm <= bound] - 1/2``.

        An example that forms a unit adds or removes a term of size 1/2. A zeroed example or a member of a group can
        flip a term: a zeroed gradient counts as unclipped.
        """
        return 1.0 if self.grouped or self.zeroed else 0.5

    def describe(self) -> str:
        """Description of the unit in words, for the privacy report."""
        if not self.grouped:
            return "example"
        return f"example, in micro-batches of {self.group_size} (sensitivity 2 x norm bound)"


def _nearest_divisor(number: int, near: int) -> int:
    divisors = [k for k in range(1, number + 1) if number % k == 0]
    return min(divisors, key=lambda k: abs(k - near))
