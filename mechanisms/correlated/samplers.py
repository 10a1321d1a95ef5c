"""Samplings whose steps with a common example are far apart, as correlated noise requires."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mechanisms.sampling import SAMPLERS, PoissonSampler, Sampler, ShuffleSampler
from monitors import checks
from monitors.events import CorrelatedEvent, PoissonSampledEvent, PrivacyEvent, compose

if TYPE_CHECKING:
    import numpy as np


@SAMPLERS.register("cyclic_poisson")
class CyclicPoissonSampler(PoissonSampler):
    """Step t draws from group ``t mod bands``, each row with probability ``bands * batch_size / num_examples``.

    Each row is in one of ``bands`` groups, by an independent uniform draw, so that no row moves others between groups.
    A row is drawn at most once in a round of ``bands`` steps, and at most once in any ``bands`` consecutive steps. With
    1 band this is Poisson sampling.

    Example:
        >>> sampler = CyclicPoissonSampler(num_examples=100, batch_size=10)
        >>> sampler.separate(bands=4)
        >>> from monitors.events import GaussianEvent
        >>> sampler.amplify(5, GaussianEvent(1.0)).partition, sampler.group_rate
        (1, 0.4)
    """

    name = "cyclic_poisson"

    def __init__(self, num_examples: int, batch_size: int, seed: int | None = None, first_partition: int = 0) -> None:
        super().__init__(num_examples, batch_size, seed, first_partition)
        self._groups: np.ndarray | None = None

    @property
    def most_bands(self) -> int:
        """Number of groups of the size of a batch."""
        return self.num_examples // self.batch_size

    def separate(self, bands: int) -> None:
        """Divide the rows into ``bands`` groups.

        Raises:
            ValueError: A batch is larger than a group.
        """
        checks.positive_int(bands=bands)
        if bands > self.most_bands:
            raise ValueError(
                f"in bands={bands} groups, {self.num_examples} examples are {self.num_examples / bands:.6g} per group, "
                f"fewer than batch_size={self.batch_size}; use at most bands={self.most_bands}, or smaller batches"
            )
        if self._groups is not None and bands != self.bands:
            raise ValueError(f"the rows are already in {self.bands} groups; use a new sampler for bands={bands}")
        self.bands = int(bands)

    @property
    def period(self) -> int:
        """Steps of a round."""
        return super().period if self.bands == 1 else self.bands

    @property
    def group_rate(self) -> float:
        """Probability with which a row is drawn at a step of its group."""
        return self.bands * self.batch_size / self.num_examples

    def rely_on(self, num_examples_public: int) -> None:
        """Refuse: the groups, of which each round draws one, are of the true number of rows.

        Raises:
            ValueError: Always.
        """
        Sampler.rely_on(self, num_examples_public)

    def rows(self, step: int) -> np.ndarray:
        """The drawn rows of the group of ``step``, ascending.

        Raises:
            ValueError: The groups are not drawn yet, and ``step`` lies within a round, which began with other groups.
        """
        import numpy as np

        if self.bands == 1:
            return super().rows(step)
        if self._groups is None and step % self.bands:
            raise ValueError(
                f"step {step} lies within a round of {self.bands} steps, whose groups are not known; begin with the "
                "first step of a round, or load the state of the sampler that began it"
            )
        members = np.flatnonzero(self._groups_of() == step % self.bands)
        return members[self.generator.bernoulli_rows(len(members), self.group_rate)] if len(members) else members

    def _groups_of(self) -> np.ndarray:
        """The group of each row, ``int64``, drawn at first use."""
        if self._groups is None:
            self._groups = self.generator.integers(self.bands, self.num_examples)
        return self._groups

    def amplify(self, step: int, *events: PrivacyEvent) -> PrivacyEvent:
        """A step of a round; a round costs as much as one sampled event at ``group_rate``."""
        if self.bands == 1:
            return super().amplify(step, *events)
        sampled = PoissonSampledEvent(self.group_rate, compose(events))
        return CorrelatedEvent(self.first_partition + step // self.bands, sampled, self.bands)

    def describe(self) -> str:
        """Description of the sampling in words."""
        if self.bands == 1:
            return super().describe()
        return (
            f"cyclic Poisson: {self.bands} groups in turn, rate {self.bands} x {self.batch_size}/{self.num_examples} = "
            f"{self.group_rate:.6g} of a group per step"
        )

    def state_dict(self) -> dict[str, Any]:
        """The group of each row, which is public: with other groups, a resumed round could draw an example again."""
        return {"groups": self._groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by ``state_dict``."""
        import numpy as np

        groups = state["groups"]
        if groups is not None:
            groups = np.asarray(groups)
            if groups.dtype != np.int64 or groups.shape != (self.num_examples,):
                raise ValueError(
                    f"groups must be int64 of shape ({self.num_examples},), got {groups.dtype} of {groups.shape}"
                )
            if groups.min() < 0 or groups.max() >= self.bands:
                raise ValueError(f"groups must lie in 0 to {self.bands - 1}, got {groups.min()} to {groups.max()}")
        self._groups = groups


@SAMPLERS.register("fixed_order")
class FixedOrderSampler(ShuffleSampler):
    """Passes over the rows in one secret random order, in whole batches; the rows that remain are never used.

    No amplification is claimed. An example is drawn once in each pass, always at the same step of it, so its steps are
    ``steps_per_epoch`` apart, and noise may be correlated over as many. A pass costs as much as one step on the whole
    data set.

    Example:
        >>> sampler = FixedOrderSampler(num_examples=10, batch_size=5)
        >>> sampler.separate(bands=2)
        >>> sorted(sampler.rows(0)) == sorted(sampler.rows(2))
        True
    """

    name = "fixed_order"

    @property
    def most_bands(self) -> int:
        """Number of steps of a pass."""
        return self.steps_per_epoch

    def separate(self, bands: int) -> None:
        """Allow noise that is correlated over ``bands`` steps.

        Raises:
            ValueError: A pass has fewer steps.
        """
        checks.positive_int(bands=bands)
        if bands > self.most_bands:
            raise ValueError(
                f"bands={bands} is more than the {self.steps_per_epoch} steps of a pass over the data; use at most "
                f"bands={self.steps_per_epoch}, or smaller batches"
            )
        self.bands = int(bands)

    def rows(self, step: int) -> np.ndarray:
        """The batch of ``step``."""
        if self._order is None:
            self._order, self._epoch = self.generator.permutation(self.num_examples), 0
        begin = step % self.steps_per_epoch * self.batch_size
        return self._order[begin : begin + self.batch_size]

    def amplify(self, step: int, *events: PrivacyEvent) -> PrivacyEvent:
        """A step of a pass, which costs as much as one step on all the data."""
        if self.bands == 1:
            return super().amplify(step, *events)
        return CorrelatedEvent(self.first_partition + step // self.steps_per_epoch, compose(events), self.bands)

    def describe(self) -> str:
        """Description of the sampling in words."""
        return f"one fixed order of batches of {self.batch_size} from {self.num_examples}, no amplification claimed"


class ArrivalOrderSampler(FixedOrderSampler):
    """``fixed_order`` for a stream: batches of the examples in the order in which they arrive, which is not secret.

    Nothing is drawn and nothing is kept: rows are numbered as they arrive. The cost is that of ``FixedOrderSampler``,
    which holds for any order.

    Example:
        >>> sampler = ArrivalOrderSampler(num_examples=10, batch_size=4)
        >>> [sampler.rows(step).tolist() for step in range(sampler.steps_per_epoch)]
        [[0, 1, 2, 3], [4, 5, 6, 7]]
    """

    #: A saved state names it: the pass over a stream must not be continued in a different order.
    name = "arrival_order"

    def rows(self, step: int) -> np.ndarray:
        """The batch of ``step``."""
        import numpy as np

        begin = step % self.steps_per_epoch * self.batch_size
        return np.arange(begin, begin + self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the order is known."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of a sampler with an order of its own.

        Raises:
            ValueError: ``state`` holds an order.
        """
        if state:
            raise ValueError(f"the order of arrival has no state, got {', '.join(state)}")

    def describe(self) -> str:
        """Description of the sampling in words."""
        return (
            f"one pass over a stream of {self.num_examples} examples in the order of arrival, in batches of "
            f"{self.batch_size}, no amplification claimed"
        )
