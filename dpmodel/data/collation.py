"""Whether a batch is put together such that an example is the same whichever others were drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from dpmodel.data.generators import Generators
from dpmodel.data.loader import Pair, PrivateLoader, RowFetcher
from dpmodel.data.specimens import Drawn, ShapeRange, Specimen, SpecimenFetcher, cut, row_shapes
from mechanisms.clipping import ClipMechanism, Fixed
from mechanisms.engines.batch import Batch, all_tensors, call_network, map_tensors
from mechanisms.engines.loop import LoopEngine
from mechanisms.engines.losses import LossFunction
from mechanisms.engines.precision import full_float32
from mechanisms.engines.probing import draws, preserve_state, without_dropout
from mechanisms.units import ClippedUnit
from monitors.errors import DataError

#: Examples, spread over the data set, among which a short and a long one are looked for before training.
LOOKED_AT = 64

#: Largest accepted change of an example's gradient, relative to its largest entry: in full and in reduced precision.
TOLERANCE = 1e-3
_COARSE_TOLERANCE = 0.03

#: A change this small over the norm bound is that of rounding: gradients of examples that are learnt are differences.
_ROUNDING = 1e-5


@dataclass
class Collation:
    """Refuses a ``collate_fn`` by which an example's gradient depends on the other examples of the batch.

    Padding to the longest of the batch is the usual case: if the network or the loss averages over the padding, a long
    example makes the gradients of all others smaller, which no clipping bounds. If the network counts positions from
    the end, or scales them by the length, a long example changes the others even behind a mask. Padding is accepted
    as long as it changes nothing. ``require_unmixed_batches`` finds what mixes examples of one length before.

    Args:
        loader: Data sets that make whole batches themselves are not looked at.
        network: As it will be trained; left as it was.
        loss_fn: The user's loss.
        device: Where the network is.
        secret: Whether the examples that are tried are chosen secretly; otherwise they are the same in each run.
        clip: Its norm bound tells which changes are too small to matter. Default: none are.
    """

    loader: PrivateLoader
    network: nn.Module
    loss_fn: LossFunction
    device: torch.device
    secret: bool = True
    clip: ClipMechanism | None = None
    _seen: ShapeRange = field(default_factory=ShapeRange, init=False)

    def check(self) -> None:
        """Compare a short and a long example in batches of their own with the same ones side by side.

        Raises:
            DataError: A gradient differs; says what to do.
        """
        fetcher, size = self.loader.fetcher, self.loader.num_examples
        if fetcher.plain or size < 2:
            return
        rows = _spread_rows(size, np.random.default_rng(None if self.secret else 0))
        singles = [fetcher[rows[at : at + 1]] for at in range(len(rows))]
        entries = [sum(tensor.numel() for tensor in all_tensors(single)) for single in singles]
        short, long = int(np.argmin(entries)), int(np.argmax(entries))
        chosen = rows[[short, long] if short != long else [0, -1]]
        self.watch(self.wrap(fetcher)[chosen], strict=True)

    def wrap(self, fetcher: RowFetcher) -> SpecimenFetcher:
        """A fetcher of what ``watch`` takes."""
        return SpecimenFetcher(fetcher, self._seen, secret=self.secret)

    def watch(self, drawn: Drawn, *, strict: bool = False) -> None:
        """Look at each batch before its step: if its shape is outside of what was accepted, padding may be at work.

        Args:
            drawn: The batch.
            strict: Whether every specimen must pass through the network alone; otherwise one of them must.

        Raises:
            DataError: An example's gradient differs from that of the example alone.
        """
        pair = drawn[:2]
        if not drawn.specimens or self._seen.covers(pair):
            return
        padded = [one for one in drawn.specimens if one.padded]
        failed = []
        for specimen in padded:
            try:
                self._require_same(specimen)
            except _NotAloneError as error:
                failed.append(error)
        if failed and (strict or len(failed) == len(padded)):
            raise failed[0]
        self._seen.include_compared(pair, drawn.specimens)

    def _require_same(self, specimen: Specimen) -> None:
        alone, beside = specimen.alone, specimen.beside
        if not specimen.steady:  # another draw of the same example: take away the padding of this one instead
            alone = cut(beside, alone)
            if row_shapes(alone) != row_shapes(specimen.alone):
                raise DataError(
                    f"the collate_fn gives an example shapes {row_shapes(specimen.alone)} alone and "
                    f"{row_shapes(beside)} beside others: what it adds may depend on them. Collate to one fixed shape"
                )
        for training in (False, True):
            change = self._change(alone, beside, training=training)
            if not change <= self._tolerance:
                raise DataError(
                    "the collate_fn pads to the longest example of a batch, and padding changes an example's gradient "
                    f"(by {change:.2g} of its largest entry, beside a longer example): leaving one example out would "
                    "move the gradients of others, which clipping does not bound. Pad all examples to one fixed length "
                    "that is chosen without looking at the data, or let the network and the loss leave padding out (a "
                    "mask, ignore_index, positions counted from the first token)"
                )

    def _change(self, alone: Pair, beside: Pair, *, training: bool) -> float:
        """By how much padding changes the gradient of an example, relative to its largest entry."""
        with self._passes(training=training):
            first = self._gradient(alone)
            if training and self._is_random(alone, first):
                return 0.0
        with self._passes(training=training):
            second = self._gradient(beside)
        difference = first - second
        if self.clip is not None and float(difference.norm()) <= _ROUNDING * self.clip.norm_bound:
            return 0.0
        return float(difference.abs().max() / first.abs().max().clamp(min=torch.finfo(first.dtype).tiny))

    @property
    def _tolerance(self) -> float:
        narrow = any(value.dtype in (torch.float16, torch.bfloat16) for value in self.network.parameters())
        return _COARSE_TOLERANCE if narrow else TOLERANCE

    @contextmanager
    def _passes(self, *, training: bool) -> Iterator[None]:
        with preserve_state(self.network, self.loss_fn), full_float32():
            self.network.eval()
            with without_dropout(self.network) if training else nullcontext():  # which would change a gradient too
                yield

    def _is_random(self, pair: Pair, gradient: Tensor) -> bool:
        """Whether a pass draws: then it draws something else for a padded example, which says nothing."""
        x, y = self._on_device(pair)
        if draws(self.network, lambda: self.loss_fn(call_network(self.network, x), y)):
            return True
        generators = Generators(self.network, self.loss_fn)
        generators.renew()
        again = self._gradient(pair)
        return not float((again - gradient).abs().max()) <= TOLERANCE / 10 * float(gradient.abs().max())

    def _gradient(self, pair: Pair) -> Tensor:
        clip = Fixed()
        clip.start(torch.finfo(torch.float32).max / 2.0)
        engine = LoopEngine(ClippedUnit(1, 1))
        engine.boundary.isolation = "trust"  # one example, and everything is put back after the pass
        try:
            return engine.clipped_sum(self.network, self.loss_fn, Batch(*self._on_device(pair)), clip).flat_grad
        except RuntimeError as error:
            raise _NotAloneError(
                f"the network cannot take a batch of one example, which private sampling may draw: {error}"
            ) from error

    def _on_device(self, pair: Pair) -> Pair:
        x, y = (map_tensors(lambda tensor: tensor.clone().to(self.device), value) for value in pair)
        return x, y


class _NotAloneError(DataError):
    """An example cannot pass through the network alone."""


def _spread_rows(size: int, draw: np.random.Generator) -> np.ndarray:
    """One row, chosen at random, of each of ``LOOKED_AT`` parts of the data set."""
    ends = np.linspace(0, size, min(LOOKED_AT, size) + 1).astype(int)
    return draw.integers(ends[:-1], ends[1:])
