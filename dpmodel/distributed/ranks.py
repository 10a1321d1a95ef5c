"""The processes of one training, and what they exchange; here: a single process, which exchanges nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from dpmodel.claims.claimed import ClaimedModel
    from mechanisms.engines.base import ClippedSum

T = TypeVar("T")


class Ranks:
    """The processes that train together. This base class is a training in one process: every method does nothing.

    Every rank calls the same methods in the same order. A rank that fails says so at the next method that the others
    call, so that all of them fail and none waits.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    rank = 0
    size = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which draws the noise and writes the files."""
        return self.rank == 0

    @contextmanager
    def together(self, model: ClaimedModel | None = None) -> Iterator[None]:
        """Every rank leaves the block without an error, or all of them raise one.

        Args:
            model: Its ledger gets the violations that other ranks have found.

        Raises:
            DistributedError: A different rank has failed.
        """
        del model
        yield

    def same(self, name: str, value: str, *, shown: bool = True) -> None:
        """State a value that must be equal on all ranks; it is compared at the next ``meet``.

        Args:
            name: The value, in words.
            value: The value.
            shown: Whether the error may show it.
        """
        del name, value, shown

    def meet(self, purpose: str, *facts: float) -> list[tuple[float, ...]]:
        """Wait for all ranks.

        Args:
            purpose: What follows; a rank that is elsewhere is an error.
            *facts: Numbers that every rank learns.

        Returns:
            The facts of each rank.

        Raises:
            DistributedError: A rank has failed, is lost, is elsewhere, or states a different value as ``same``.
        """
        del purpose
        return [facts]

    def share(self, value: T) -> T:
        """The value of rank 0."""
        return value

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order."""
        return [value]

    def once(self, function: Callable[[], T]) -> T:
        """The result of ``function``, which rank 0 calls, on every rank."""
        return function()

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Give ``tensors`` the values that they have on rank 0."""
        del tensors

    def whole(self, summed: ClippedSum, examples: int) -> ClippedSum:
        """The clipped sum of the logical batch.

        Norms, loss and counts are those of the batch on every rank. The sum of gradients is on rank 0 alone, and zero
        elsewhere.

        Args:
            summed: The clipped sum of the examples of this rank.
            examples: Their number.
        """
        del examples
        return summed

    def released(self, release: Callable[[], Tensor], summed: ClippedSum) -> Tensor:
        """The noisy sum, equal to the bit on all ranks: rank 0 calls ``release``, and the others receive the result.

        The noise is drawn once and whole. Noise in shares, of variance ``sigma**2 / size`` from each rank, would give
        the same sum, but a rank that is lost, or whose share becomes known, would take its part of the noise with it.
        """
        del summed
        return release()


#: A training in one process.
ALONE = Ranks()
