"""Whether the features of an example are its own: independent of other examples, and of when they are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpmodel.features.example_features import ExampleFeatures
from mechanisms.engines.batch import map_tensors
from monitors.errors import DataError, UnprotectedUpdateError, UnsupportedModuleError

#: Examples that are compared, from all over the data set.
COMPARED = 8

#: Largest change that rounding may explain, relative to the largest entry; kernels depend on the batch size.
_ROUNDING = 1e-4


class RowSample:
    """The features of a few examples, each computed alone, to compare with those computed with others.

    Args:
        each: Computes the features.
        rows: Rows of the examples.
        x: Their inputs.

    Raises:
        DataError: The network does not take a single example, or gives something other than one row of numbers.
        UnprotectedUpdateError: See ``ExampleFeatures``.
        UnsupportedModuleError: The features of a row depend on the other rows of its batch, or are random.
    """

    def __init__(self, each: ExampleFeatures, rows: np.ndarray[Any, Any], x: Any) -> None:
        self.rows = torch.from_numpy(rows)
        self.alone = each(x)
        require_finite(self.alone, rows.tolist())
        try:
            together = each.shown(x)
            # Once more in reverse: neither the place in the batch nor what came before may matter.
            turned = each.shown(map_tensors(lambda part: part.flip(0), x)).flip(0)
        except UnprotectedUpdateError:
            if each.is_isolated:  # then the network never sees values, whatever it keeps
                return
            raise
        if not (self._agree(together) and self._agree(turned)):
            raise UnsupportedModuleError(
                f"{type(each.network).__name__} gives an example different features alone and beside others (or draws "
                "random numbers): one example would move the features of several, but the ledger accounts for one. "
                "Use a network that treats each example separately in evaluation mode; batch normalisation needs "
                "running statistics"
            )

    def agrees(self, features: Tensor) -> bool:
        """Whether ``features`` of the whole data set have the same values in these rows."""
        return self._agree(features[self.rows])

    def _agree(self, other: Tensor) -> bool:
        if other.shape != self.alone.shape:
            return False
        allowed = max(_ROUNDING, 8 * torch.finfo(self.alone.dtype).eps)
        one, other = self.alone.double().cpu(), other.double().cpu()
        return bool(((one - other).abs().max() <= allowed * one.abs().max()) & one.isfinite().all())


def require_finite(features: Tensor, rows: Sequence[int]) -> None:
    """Refuse NaN and infinite features.

    Args:
        features: Those of some examples.
        rows: Rows of these examples.

    Raises:
        DataError: Names the row.
    """
    finite = features.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        row = rows[int((~finite).nonzero()[0])]
        raise DataError(f"the features of row {row} are NaN or infinite; check the network and that input")
