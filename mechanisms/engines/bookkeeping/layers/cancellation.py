"""Terms of one example that cancel: a floor for its norm, which does not depend on how the norm is computed.

The gradient of a weight is a sum of terms, one for each position. Where they cancel, rounding decides what remains, and
large terms round what other examples add to the same sum. A floor for the norm limits both. It depends on the example
alone: neither on the formula, nor on the number of calls of the layer, nor on positions that contribute nothing, such
as the padding to a longer example. The longest example of a batch may decide on all of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mechanisms.engines.batch import costs_a_wait
from mechanisms.engines.bookkeeping.layers.rules import Term

#: Terms of random directions add up to the root of the sum of their squares. Terms that cancel further, by more than
#: this factor, raise the norm.
CANCELLATION = 16

#: Rounding error allowed for a sum of terms, in roundings of the size of its terms, beside one for each term.
ROUNDINGS = 8

#: Float32 norms between these are exact; others may have squares that underflow or overflow.
_EXACT = (1e-15, 1e18)


@dataclass(frozen=True)
class TermSizes:
    """The sizes of the terms of each example.

    Args:
        sizes: Norms of the terms, float64, shape (B, T).
        largest: Norm of the largest input of each example, float64, shape (B,).
        most: Largest number of positions with which norm and sum of the layer may be computed in two ways.
    """

    sizes: Tensor
    largest: Tensor
    most: int

    @classmethod
    def of(cls, x: Tensor, g: Tensor, most: int) -> TermSizes:
        """Those of terms ``g_t x_t'`` with x (B, T, I) and g (B, T, O)."""
        norms = row_norms(x)
        return cls(norms * row_norms(g), norms.amax(1), most)

    @classmethod
    def joined(cls, parts: Sequence[TermSizes]) -> TermSizes:
        """Those of the terms of several calls."""
        largest = torch.stack([part.largest for part in parts]).amax(0)
        return cls(torch.cat([part.sizes for part in parts], dim=1), largest, max(part.most for part in parts))

    def of_examples(self, rows: int) -> TermSizes:
        """Those of examples that have that many rows each."""
        largest = self.largest.view(-1, rows).amax(1)
        return TermSizes(self.sizes.view(-1, rows * self.sizes.shape[1]), largest, self.most)

    def raised(self, term: Term, dtype: torch.dtype) -> Term:
        """The term with a norm that is at least as large as its contribution to a sum.

        - The rounding error of its own sum is added to its norm, as norm and sum may be computed in two ways.
        - Its norm is at least the root of the sum of the squared sizes over ``CANCELLATION``. Without a floor, terms
          that cancel would be weighted by a factor so large that they round what other examples add.
        - Inputs whose squared norm overflows ``dtype`` make it infinite, since their gradients may underflow when
          weighted.

        Args:
            term: The term, by any formula; ``squared_norms`` may be more precise than ``dtype``.
            dtype: Type of the clipped sum.
        """
        if _exact:
            return replace(term, squared_norms=term.squared_norms.to(dtype))
        limits = torch.finfo(dtype)
        count = (self.sizes > 0).sum(1).clamp(max=self.most)
        error = self.sizes.sum(1) * (count + ROUNDINGS) * (limits.eps / 2)
        floor = torch.linalg.vector_norm(self.sizes, dim=1) / CANCELLATION
        norms = torch.maximum(term.squared_norms.double().clamp(min=0.0).sqrt() + error, floor)
        norms = norms.masked_fill(self.largest.square() > limits.max, torch.inf)
        return replace(term, squared_norms=norms.square().to(dtype))


#: Not empty while norms are not raised.
_exact: list[bool] = []


@contextmanager
def exact_norms() -> Iterator[None]:
    """Raise no norms inside, to compare gradients with those of other engines; never for a sum that is released.

    Example:
        >>> x, g = torch.tensor([[[1.0], [1.0]]]), torch.tensor([[[1.0], [-1.0]]])
        >>> term = Term.of_rows((x * g).sum(1))
        >>> with exact_norms():
        ...     TermSizes.of(x, g, 1).raised(term, torch.float32).squared_norms.item()
        0.0
    """
    _exact.append(True)
    try:
        yield
    finally:
        _exact.pop()


def channel_squares(values: Tensor) -> Tensor:
    """Sums of squares over the channels of values (B, groups, channels, ...), float64, shape (B, groups, ...)."""
    if costs_a_wait(values):  # without a copy of the values in float64, which costs a GPU more than the sum
        norms: Tensor = torch.linalg.vector_norm(values, dim=2, dtype=torch.float64)
        return norms.square_()
    return values.double().square().sum(2)


def row_norms(rows: Tensor) -> Tensor:
    """Norms over the last dimension, float64, without underflow or overflow of squares.

    Example:
        >>> row_norms(torch.tensor([[3.0, 4.0], [3e-30, 4e-30]])).tolist()
        [5.0, 5.0000...e-30]
    """
    norms: Tensor
    if rows.dtype == torch.float64:
        largest = rows.abs().amax(-1, keepdim=True)
        norms = torch.linalg.vector_norm(rows / largest.where(largest > 0, 1.0), dim=-1)
        return norms.mul_(largest.squeeze(-1))
    if costs_a_wait(rows):
        norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)
        return norms
    norms = torch.linalg.vector_norm(rows, dim=-1).double()
    doubtful = ~((norms > _EXACT[0]) & (norms < _EXACT[1]))
    if bool(doubtful.any()):
        doubtful &= torch.linalg.vector_norm(rows, torch.inf, dim=-1) != 0  # rows of padding are zero
        norms[doubtful] = torch.linalg.vector_norm(rows[doubtful], dim=-1, dtype=torch.float64)
    return norms
