"""Several random views of each example, which count as one example: its loss is the mean over its views.

A view belongs to the example it was made from, by the layout of the tensors: views are a dimension inside the row of an
example. So an example is clipped once, whatever the number of its views, and the sensitivity of the sum is that of one
example. Nothing that selects, groups or cuts rows can separate the views of an example or join those of two.

References:
    De et al. 2022, "Unlocking High-Accuracy Differentially Private Image Classification through Scale" (augmentation
    multiplicity).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mechanisms.engines.batch import map_tensors
from mechanisms.engines.isolation.isolated import isolated
from mechanisms.engines.state.python_state import MOST_BYTES, PythonState
from monitors.errors import UnsupportedModuleError


@dataclass(frozen=True)
class Views:
    """Views of the examples of a batch that have been drawn, and are made when an engine needs them.

    Args:
        numbers: Random numbers that determine the views, shape (B, K, D), for K views of each of B examples.
        view: ``view(copies, numbers)`` makes the views of one example from K copies of it, shape (K, ...), and its
            numbers (K, D). It runs isolated: it cannot see other examples, and its state is restored.

    Example:
        >>> import torch
        >>> shifts = torch.tensor([[[0.0], [1.0]], [[2.0], [3.0]]])
        >>> Views(shifts, lambda copies, numbers: copies + numbers).of(torch.tensor([[10.0], [20.0]])).tolist()
        [[[10.0], [11.0]], [[22.0], [23.0]]]
    """

    numbers: Tensor
    view: Callable[[Any, Tensor], Any]

    @property
    def multiplicity(self) -> int:
        """Number of views of each example, K."""
        return self.numbers.shape[1]

    def select(self, rows: Tensor | slice) -> Views:
        """The views of only these examples."""
        return Views(self.numbers[rows], self.view)

    def of(self, x: Any) -> Any:
        """The views of the examples ``x``, tensors of shape (B, K, ...).

        Raises:
            UnsupportedModuleError: The code that makes views needs more than one example or reads values, or keeps
                state that cannot be restored.
        """
        if not len(self.numbers):
            return map_tensors(lambda value: value.unsqueeze(1).expand(0, self.multiplicity, *value.shape[1:]), x)
        state = PythonState(self.view)
        if state.unfollowed or not state.complete:
            raise UnsupportedModuleError(
                f"the augmentation keeps state that cannot be restored after each call, or more than {MOST_BYTES:,} "
                "bytes of tensors and arrays"
            )

        def of_one(example: Any, numbers: Tensor) -> Any:
            copies = map_tensors(lambda value: value.expand(self.multiplicity, *value.shape[1:]), example)
            return self.view(copies, numbers.squeeze(0))

        try:
            return isolated(of_one, x, self.numbers)
        finally:
            state.restore()
