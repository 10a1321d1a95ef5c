"""Samplers: which rows each step sees, and how far this reduces the cost of a release (amplification)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mechanisms.rng import SecureGenerator
from monitors import checks
from monitors.events import DisjointEvent, PoissonSampledEvent, PrivacyEvent, compose
from monitors.registry import Registry
from monitors.relation import ADD_OR_REMOVE, ZERO_OUT

if TYPE_CHECKING:
    import numpy as np

SAMPLERS: Registry[type[Sampler]] = Registry("sampling")


#: Standard deviations above the mean: a sum of many independent draws exceeds them with a probability of about 1e-10.
DEVIATIONS = 6.5


def likely_most(mean: float, variance: float) -> int:
    """A number that a sum of independent draws hardly ever exceeds.

    Example:
        >>> likely_most(256, 256)
        360
    """
    return math.ceil(mean + DEVIATIONS * math.sqrt(variance))


#: Most rows of a data set, as a multiple of the number that was stated for it.
_MOST_ROWS = 2

#: Constants of a sampler that are set once.
_FIXED = ("num_examples", "batch_size", "num_examples_public")


class Sampler(ABC):
    """Base of all samplers. ``num_examples`` and ``batch_size`` are public constants, which cannot be changed.

    Workers draw rows ahead of the step that is charged, and an epoch's batches are disjoint only if their size stays.

    Args:
        num_examples: Number of rows in the data set.
        batch_size: Expected (Poisson) or exact (shuffle) number of rows per step; at most ``num_examples``.
        seed: 0 or None for secret sampling. Any other integer makes it reproducible and voids the guarantee (tests
            only).
        first_partition: Partition number of the first epoch on the ledger (shuffle).

    Raises:
        ValueError: ``batch_size`` exceeds ``num_examples``.
    """

    relation: ClassVar[str]
    name: ClassVar[str]
    #: Whether neighbouring data sets differ by zeroing an example's gradient, not by adding or removing the example.
    zeroes: ClassVar[bool] = False

    def __init__(self, num_examples: int, batch_size: int, seed: int | None = None, first_partition: int = 0) -> None:
        checks.positive_int(num_examples=num_examples, batch_size=batch_size)
        checks.non_negative_int(first_partition=first_partition)
        if batch_size > num_examples:
            raise ValueError(
                f"batch_size={batch_size} is larger than the data set of {num_examples} examples; "
                f"use at most batch_size={num_examples}"
            )
        self.num_examples = int(num_examples)
        self.batch_size = int(batch_size)
        self.first_partition = int(first_partition)
        self.generator = SecureGenerator(seed, purpose="sampling")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and getattr(self, name, None) is not None:
            raise AttributeError(
                f"{name} of a {type(self).__name__} is fixed at {getattr(self, name)}, got {checks.shown(value)}: what "
                "the ledger states of each step depends on it. Call fit again with another loader"
            )
        super().__setattr__(name, value)

    #: Steps over which the noise of this training is correlated.
    bands: int = 1

    #: The stated number of examples that sets the sampling rate; None: the number of rows does.
    num_examples_public: int | None = None

    @property
    def stated_examples(self) -> int:
        """The number of examples that steps and reports depend on, in place of the true one if that is not public."""
        return self.num_examples if self.num_examples_public is None else self.num_examples_public

    def rely_on(self, num_examples_public: int) -> None:
        """Draw at the rate of a stated, public number of examples, so that no released number depends on the true one.

        Args:
            num_examples_public: At least the batch size, and at least half the number of rows.

        Raises:
            ValueError: The number is out of range, or the cost of this sampling depends on the number of rows.
        """
        raise ValueError(
            f"num_examples_public={num_examples_public!r} does not go together with sampling={self.name!r}, whose "
            "batches or groups depend on the true number of rows. Use sampling='poisson', or treat that number as "
            "public"
        )

    @property
    def most_bands(self) -> int | None:
        """Most steps over which noise may be correlated; None if this sampling is for independent noise only."""
        return None

    @property
    def period(self) -> int:
        """Number of steps that may share a partition of the ledger; an epoch by default."""
        return self.steps_per_epoch

    def partitions(self, steps: int) -> int:
        """Most partition numbers that ``steps`` steps use on the ledger."""
        return -(-steps // self.period)

    def separate(self, bands: int) -> None:
        """Draw each example only in steps that are at least ``bands`` steps apart, and set ``self.bands``.

        Args:
            bands: Number of steps over which the noise is correlated; 1 for independent noise.

        Raises:
            ValueError: This sampling cannot do that.
        """
        if bands > 1:
            raise ValueError(
                f"noise that is correlated over {bands} steps does not go together with sampling={self.name!r}, which "
                "may draw an example in two of these steps. Use sampling='cyclic_poisson' or 'fixed_order', or "
                "independent noise ('Gaussian')"
            )

    @property
    def sampling_rate(self) -> float:
        """Expected fraction of the data set that one step sees."""
        return self.batch_size / self.stated_examples

    @property
    def capacity(self) -> int:
        """Number of rows that a step never or hardly ever exceeds; it is neither a limit nor a part of a statement."""
        mean = self.num_examples * self.sampling_rate
        return min(self.num_examples, likely_most(mean, mean * (1.0 - self.sampling_rate)))

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in one epoch: the number of whole batches in the data set, or in the stated one."""
        return self.stated_examples // self.batch_size

    @abstractmethod
    def rows(self, step: int) -> np.ndarray:
        """``int64`` row indices of ``step`` (0 is this sampler's first step), possibly none."""

    @abstractmethod
    def amplify(self, step: int, *events: PrivacyEvent) -> PrivacyEvent:
        """One event for all releases from the sample drawn at ``step``."""

    @abstractmethod
    def describe(self) -> str:
        """Description of the sampling in words, for the privacy report."""

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs besides the position in a reproducible stream; empty by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by ``state_dict``."""
        del state

    def group_ids(self, count: int, groups: int) -> np.ndarray:
        """An independent uniform group for each of ``count`` drawn rows, ``int64`` in [0, groups)."""
        return self.generator.integers(groups, count)


@SAMPLERS.register("poisson")
class PoissonSampler(Sampler):
    """Each row joins each step independently with probability ``batch_size / num_examples``.

    A step may see no rows at all; it gets noise and is charged like any other. After ``rely_on``, the probability is
    ``batch_size / num_examples_public``.

    Example:
        >>> sampler = PoissonSampler(num_examples=100, batch_size=10)
        >>> sampler.sampling_rate, sampler.steps_per_epoch
        (0.1, 10)
        >>> from monitors.events import GaussianEvent
        >>> sampler.amplify(0, GaussianEvent(1.0))
        PoissonSampledEvent(sampling_rate=0.1, event=GaussianEvent(noise_multiplier=1.0))
    """

    relation = ADD_OR_REMOVE
    name = "poisson"

    def rely_on(self, num_examples_public: int) -> None:
        """Draw at the rate of a stated number of examples; see ``Sampler.rely_on``.

        Each row still joins by an independent coin, of a rate that is the same for neighbouring data sets.

        Example:
            >>> sampler = PoissonSampler(num_examples=97, batch_size=10)
            >>> sampler.rely_on(100)
            >>> sampler.sampling_rate, sampler.steps_per_epoch
            (0.1, 10)
        """
        checks.positive_int(num_examples_public=num_examples_public)
        if num_examples_public < self.batch_size:
            raise ValueError(
                f"num_examples_public={num_examples_public} is smaller than batch_size={self.batch_size}: no rate "
                f"above 1 exists. State at least {self.batch_size}, or use smaller batches"
            )
        if self.num_examples > _MOST_ROWS * num_examples_public:
            raise ValueError(
                f"num_examples_public={num_examples_public} is less than half the number of rows of the data: batches "
                f"would be more than {_MOST_ROWS} times as large as batch_size={self.batch_size}. State the size "
                "that is publicly known of the data, such as a rounded one"
            )
        self.num_examples_public = int(num_examples_public)

    def rows(self, step: int) -> np.ndarray:
        """The drawn rows, ascending."""
        del step
        return self.generator.bernoulli_rows(self.num_examples, self.sampling_rate)

    def amplify(self, step: int, *events: PrivacyEvent) -> PrivacyEvent:
        """One sampled event of all releases from the sample, which are composed inside the sampling."""
        del step
        released = compose(events)
        return released if self.sampling_rate == 1.0 else PoissonSampledEvent(self.sampling_rate, released)

    def describe(self) -> str:
        """Description of the sampling in words."""
        of = "" if self.num_examples_public is None else " of a stated number of examples"
        return f"Poisson, rate {self.batch_size}/{self.stated_examples}{of} = {self.sampling_rate:.6g} per step"


@SAMPLERS.register("shuffle")
class ShuffleSampler(Sampler):
    """Shuffles the rows in each epoch and cuts them into whole batches; an epoch skips the remaining rows.

    No amplification is claimed. Each example is in at most one batch of an epoch, so an epoch costs as much as its most
    expensive step on the whole data set (parallel composition).

    Example:
        >>> sampler = ShuffleSampler(num_examples=10, batch_size=5)
        >>> sorted(sampler.rows(0).tolist() + sampler.rows(1).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    relation = ZERO_OUT
    name = "shuffle"
    zeroes = True

    def __init__(self, num_examples: int, batch_size: int, seed: int | None = None, first_partition: int = 0) -> None:
        super().__init__(num_examples, batch_size, seed, first_partition)
        self._epoch = -1
        self._order: np.ndarray | None = None

    @property
    def capacity(self) -> int:
        """Number of rows of every step."""
        return self.batch_size

    def rows(self, step: int) -> np.ndarray:
        """The batch of ``step``, in the order of its epoch.

        Raises:
            ValueError: The step belongs to an earlier epoch, whose order is no longer known.
        """
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch < self._epoch:
            raise ValueError(
                f"step {step} lies in epoch {epoch}, but epoch {self._epoch} has begun and earlier orders are gone; "
                "draw steps in ascending order"
            )
        if self._order is None or epoch > self._epoch:
            self._order = self.generator.permutation(self.num_examples)
            self._epoch = epoch
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """The order of the current epoch, which need not be secret because no amplification is claimed.

        A resumed epoch must continue with it. Under a different order, an example could be in two batches of one
        epoch, which the parallel composition on the ledger rules out.
        """
        return {"epoch": self._epoch, "order": self._order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by ``state_dict``."""
        import numpy as np

        epoch, order = state["epoch"], state["order"]
        checks.finite(epoch=epoch)
        if order is not None:
            order = np.asarray(order)
            if order.dtype != np.int64 or not np.array_equal(np.sort(order, axis=None), np.arange(self.num_examples)):
                raise ValueError(f"order must hold each of the rows 0 to {self.num_examples - 1} once, as int64")
        if (order is None) != (epoch < 0):
            raise ValueError(f"order and epoch contradict each other: epoch {epoch!r}, order {checks.shown(order)}")
        self._epoch, self._order = int(epoch), order

    def amplify(self, step: int, *events: PrivacyEvent) -> PrivacyEvent:
        """The event of one part of the epoch's partition of the data."""
        return DisjointEvent(self.first_partition + step // self.steps_per_epoch, compose(events))

    def describe(self) -> str:
        """Description of the sampling in words."""
        return f"shuffled batches of {self.batch_size} from {self.num_examples}, no amplification claimed"
