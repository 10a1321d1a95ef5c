"""Concatenates the rows of all examples, for kernels that treat the rows of a batch independently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from mechanisms.engines.isolation.isolated import example_of, on_batch, rows_of
from monitors.errors import UnsupportedModuleError

#: Types of tensors, or None, that run no custom code in operations.
PLAIN = (Tensor, nn.Parameter, type(None))


@dataclass(frozen=True)
class Layout:
    """Layout of the rows: row ``b * each + i`` is row ``i`` of example ``b``, and nothing else.

    The isolation of examples in a kernel that sees the whole batch rests on this. A kernel that treats the first
    dimension row by row computes row ``b * each + i`` of its output from the same rows of its inputs, provided that
    each input has all of them: one with fewer rows would be broadcast against the rows of other examples.

    Args:
        examples: Number of examples B.
        each: Number of rows of one example, in the first dimension of its tensors; None if an example is a single row
            without such a dimension.
    """

    examples: int
    each: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions that the rows come from: (B, each), or (B,)."""
        return (self.examples,) if self.each is None else (self.examples, self.each)

    @property
    def count(self) -> int:
        """Number of rows of all examples."""
        return self.examples * (1 if self.each is None else self.each)

    def gather(self, value: Tensor) -> Tensor:
        """The rows of all examples, shape (count, ...); a value that the examples share is repeated for each.

        Args:
            value: The tensor of one example, shape (each, ...), inside ``isolated``.

        Raises:
            UnsupportedModuleError: ``value`` has a different number of rows, or its type runs custom code.
        """
        own = rows_of(value)
        with on_batch():
            rows = value.expand(self.examples, *value.shape) if own is None else own
            fits = rows.shape[: len(self.shape)] == self.shape and rows.dim() == value.dim() + 1
            if not fits or type(rows) not in PLAIN or (own is None and type(value) not in PLAIN):
                raise UnsupportedModuleError(
                    f"a {type(value).__name__} of shape {tuple(value.shape)} does not hold {self.each or 1} plain rows "
                    f"for each of {self.examples} examples"
                )
            return rows if self.each is None else rows.flatten(0, 1)

    def spread(self, output: Tensor) -> Tensor:
        """The inverse of ``gather``: shape (B, each, ...), on the tensors of the whole batch.

        Raises:
            UnsupportedModuleError: ``output`` does not have one row for each row that was gathered.
        """
        if not output.dim() or output.shape[0] != self.count:
            raise UnsupportedModuleError(
                f"a layer returns shape {tuple(output.shape)} for {self.count} rows; it must return one row for each"
            )
        return output if self.each is None else output.unflatten(0, self.shape)


def on_rows(function: Callable[..., Tensor], *values: Tensor | None) -> Tensor:
    """``function(*values)``, computed for the rows of all examples at once.

    Only for functions for which row i of the result is known to depend only on row i of each value, if all values have
    the same number of rows and of dimensions.

    Args:
        function: Function of tensors whose first dimension counts the same rows.
        values: Tensors of one example that ``lie_alike``, or None. Inside ``isolated``, tensors that the examples share
            are repeated for each of them.

    Raises:
        UnsupportedModuleError: The values do not lie alike.
    """
    given = [value for value in values if value is not None]
    size = next((len(rows) for rows in map(rows_of, given) if rows is not None), None)
    if size is None:
        return function(*values)
    if not lie_alike(*values):
        shapes = [tuple(value.shape) for value in given]
        raise UnsupportedModuleError(f"tensors of shapes {shapes} do not have the same rows")
    layout = Layout(size, given[0].shape[0])
    gathered = [None if value is None else layout.gather(value) for value in values]
    with on_batch():
        return example_of(layout.spread(function(*gathered)))


def lie_alike(*values: Tensor | None) -> bool:
    """Whether row i of one tensor corresponds to row i of all others, and their types run no custom code.

    The number of dimensions must be equal: broadcasting aligns the rows of a tensor with fewer dimensions with a
    different dimension of the others.

    Example:
        >>> import torch
        >>> rows = torch.zeros(2, 5, 3)
        >>> lie_alike(rows, torch.zeros(2, 1, 1), None), lie_alike(rows, rows[:1]), lie_alike(rows, rows[0])
        (True, False, False)
    """
    given = [value for value in values if value is not None]
    return given[0].dim() > 0 and all(
        value.dim() == given[0].dim() and value.shape[0] == given[0].shape[0] and type(value) in PLAIN
        for value in given
    )


def needs_gradient(value: Tensor | None) -> bool:
    """Whether a tensor requires a gradient; inside ``isolated``, only the tensor of all examples knows."""
    rows = rows_of(value)
    return bool((value if rows is None else rows).requires_grad) if value is not None else False
