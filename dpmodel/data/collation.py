"""Whether a batch is put together such that an example is the same whichever others were drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpmodel.data.loader import Pair, PrivateLoader
from mechanisms.clipping import Fixed
from mechanisms.engines.batch import Batch, all_tensors, first_tensor, map_tensors
from mechanisms.engines.loop import LoopEngine
from mechanisms.engines.losses import LossFunction
from mechanisms.engines.probing import undisturbed
from mechanisms.units import ClippedUnit
from monitors.errors import DataError

Shapes = list[torch.Size]

#: Examples, spread over the data set, among which a short and a long one are looked for before training.
LOOKED_AT = 64

#: Largest accepted change of an example's gradient, relative to its largest entry.
TOLERANCE = 1e-3


@dataclass
class Collation:
    """Refuses a ``collate_fn`` by which an example's gradient depends on the other examples of the batch.

    Padding to the longest of the batch is the usual case: where the network or the loss averages over the padding, a
    long example makes the gradients of all others smaller, which no clipping bounds. It is accepted where padding
    changes nothing. What mixes examples of one length is found before (``require_unmixed_batches``).

    Args:
        loader: Data sets that make whole batches themselves are not looked at.
        network: As it will be trained; left as it was.
        loss_fn: The user's loss.
        device: Where the network is.
        secret: Whether the examples that are tried are chosen secretly; otherwise they are the same in each run.
    """

    loader: PrivateLoader
    network: nn.Module
    loss_fn: LossFunction
    device: torch.device
    secret: bool = True
    _accepted: bool = field(default=False, init=False)
    _shapes: Shapes | None = field(default=None, init=False)

    def check(self) -> None:
        """Compare an example in a batch of its own with the same one beside a longer one.

        Raises:
            DataError: Its gradient differs; says what to do.
        """
        fetcher, size = self.loader.fetcher, self.loader.num_examples
        if not fetcher.collates or size < 2:
            return
        rows = _spread_rows(size, np.random.default_rng(None if self.secret else 0))
        entries = [_entries(fetcher[rows[at : at + 1]]) for at in range(len(rows))]
        short, long = int(np.argmin(entries)), int(np.argmax(entries))
        if short != long:
            self._compare(int(rows[short]), int(rows[long]))
        else:
            self._compare(int(rows[0]), int(rows[-1]))

    def watch(self, batch: Pair) -> None:
        """Look at each batch before its step: where rows come in another shape than before, padding is at work.

        Raises:
            DataError: As of ``check``, or no two examples of different length can be found to compare.
        """
        if self._accepted or not self.loader.fetcher.collates or not first_tensor(batch[0]).shape[0]:
            return
        shapes = _row_shapes(batch)
        self._shapes = shapes if self._shapes is None else self._shapes
        if shapes == self._shapes:
            return
        fetcher = self.loader.fetcher
        first = _entries(fetcher[np.array([0])])
        for row in range(1, self.loader.num_examples):
            entries = _entries(fetcher[np.array([row])])
            if entries != first:
                self._compare(*((0, row) if first < entries else (row, 0)))
                break
        if not self._accepted:
            raise DataError(
                f"the collate_fn gives batches rows of different shapes, {self._shapes} and {shapes}, though all "
                "examples are of one size: what an example adds may depend on the others. Collate to one fixed shape"
            )

    def _compare(self, short: int, long: int) -> None:
        fetcher = self.loader.fetcher
        alone, beside = fetcher[np.array([short])], _first_row(fetcher[np.array([short, long])])
        if _row_shapes(alone) == _row_shapes(beside):
            return
        steady = _equal(alone, fetcher[np.array([short])])
        if not steady:  # another draw of the same example: take away the padding of this one instead
            alone = _cut(beside, alone)
        first, second = (self._gradient(pair) for pair in (alone, beside))
        change = float((first - second).abs().max() / first.abs().max().clamp(min=torch.finfo(first.dtype).tiny))
        if not change <= TOLERANCE:
            raise DataError(
                f"the collate_fn pads to the longest example of a batch, and padding changes an example's gradient (by "
                f"{change:.2g} of its largest entry, beside a longer example): leaving one example out would move the "
                "gradients of others, which clipping does not bound. Pad all examples to one fixed length, or let the "
                "network and the loss leave padding out (a mask, ignore_index)"
            )
        self._accepted = True

    def _gradient(self, pair: Pair) -> Tensor:
        clip = Fixed()
        clip.start(torch.finfo(torch.float32).max / 2.0)
        x, y = (map_tensors(lambda tensor: tensor.to(self.device), value) for value in pair)
        with undisturbed(self.network, self.loss_fn):
            self.network.eval()  # dropout would change a gradient too
            try:
                engine = LoopEngine(ClippedUnit(1, 1))
                return engine.clipped_sum(self.network, self.loss_fn, Batch(x, y), clip).flat_grad
            except RuntimeError as error:
                raise DataError(
                    f"the network cannot take a batch of one example, which private sampling may draw: {error}"
                ) from error


def _spread_rows(size: int, draw: np.random.Generator) -> np.ndarray:
    """One row, chosen at random, of each of ``LOOKED_AT`` parts of the data set."""
    ends = np.linspace(0, size, min(LOOKED_AT, size) + 1).astype(int)
    return draw.integers(ends[:-1], ends[1:])


def _row_shapes(pair: Pair) -> Shapes:
    return [tensor.shape[1:] for tensor in all_tensors(pair)]


def _entries(pair: Pair) -> int:
    return sum(tensor.numel() for tensor in all_tensors(pair))


def _first_row(pair: Pair) -> Any:
    return map_tensors(lambda tensor: tensor[:1], pair)


def _cut(nest: Any, like: Any) -> Any:
    """``nest`` without what its tensors have beyond the sizes of those of ``like``."""
    sizes = iter([tensor.shape for tensor in all_tensors(like)])
    return map_tensors(lambda tensor: tensor[tuple(map(slice, next(sizes)))], nest)


def _equal(left: Any, right: Any) -> bool:
    pairs = list(zip(all_tensors(left), all_tensors(right), strict=True))
    return all(
        a.shape == b.shape and torch.equal(torch.nan_to_num(a.float()), torch.nan_to_num(b.float())) for a, b in pairs
    )
