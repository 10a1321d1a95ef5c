"""Padding: the gradient of an example must not depend on the other examples of its batch."""

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

#: Examples, spread over the data set, or first ones of a stream, from which a short and a long one are chosen before
#: training.
MEASURED = 64

#: Largest accepted change of a gradient, relative to its largest entry: in full and in reduced precision.
TOLERANCE = 1e-3
_COARSE_TOLERANCE = 0.03

#: A change this small over the norm bound is rounding: gradients of examples that are learnt are small differences.
_ROUNDING = 1e-5


@dataclass
class Collation:
    """Refuses a ``collate_fn`` that makes an example's gradient depend on the other examples of the batch.

    The usual case is padding to the longest example: if the network or the loss averages over the padding, a long
    example makes the gradients of all others smaller, and clipping does not bound that. If the network counts positions
    from the end, or scales them by the length, a long example changes the others even behind a mask. Padding that
    changes no gradient is accepted. ``require_unmixed_batches`` finds mixing among examples of one length.

    Args:
        loader: The private loader; batches of plain tensors are not checked.
        network: The network to be trained; left as it was.
        loss_fn: The user's loss.
        device: Where the network is.
        secret: Whether to choose the examples secretly; otherwise they are the same in each run.
        clip: Changes far below its norm bound are ignored. Default: every change counts.
    """

    loader: PrivateLoader
    network: nn.Module
    loss_fn: LossFunction
    device: torch.device
    secret: bool = True
    clip: ClipMechanism | None = None
    _seen: ShapeRange = field(default_factory=ShapeRange, init=False)

    def check(self) -> None:
        """Compare a short and a long example, each in its own batch, with both in one batch.

        Raises:
            DataError: A gradient differs.
        """
        fetcher, size = self.loader.fetcher, self.loader.readable
        if fetcher.plain or size < 2:
            return
        rows = _spread_rows(size, np.random.default_rng(None if self.secret else 0))
        singles = [fetcher[rows[at : at + 1]] for at in range(len(rows))]
        entries = [sum(tensor.numel() for tensor in all_tensors(single)) for single in singles]
        short, long = int(np.argmin(entries)), int(np.argmax(entries))
        chosen = rows[[short, long] if short != long else [0, -1]]
        self.watch(self.wrap(fetcher)[chosen], strict=True)

    def wrap(self, fetcher: RowFetcher) -> SpecimenFetcher:
        """A fetcher of batches for ``watch``."""
        return SpecimenFetcher(fetcher, self._seen, secret=self.secret)

    def watch(self, drawn: Drawn, *, strict: bool = False) -> None:
        """Check a batch before its step if its shape is outside of the accepted range: padding may differ.

        Args:
            drawn: The batch.
            strict: Whether every specimen must pass through the network alone; otherwise one must.

        Raises:
            DataError: The gradient of an example differs from that of the example alone.
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
        if not specimen.steady:  # random: remove the padding of this draw instead
            alone = cut(beside, alone)
            if row_shapes(alone) != row_shapes(specimen.alone):
                raise DataError(
                    f"the collate_fn gives an example shapes {row_shapes(specimen.alone)} alone and "
                    f"{row_shapes(beside)} beside others: its padding may depend on them. Collate to one fixed shape"
                )
        for training in (False, True):
            change = self._change(alone, beside, training=training)
            if not change <= self._tolerance:
                raise DataError(
                    "the collate_fn pads to the longest example of a batch, and padding changes an example's gradient "
                    f"(by {change:.2g} of its largest entry, beside a longer example): leaving one example out would "
                    "move the gradients of others, which clipping does not bound. Pad all examples to a fixed length, "
                    "chosen without looking at the data, or exclude padding in the network and the loss (a mask, "
                    "ignore_index, positions counted from the first token)"
                )

    def _change(self, alone: Pair, beside: Pair, *, training: bool) -> float:
        """The change of an example's gradient by padding, relative to its largest entry."""
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
            with without_dropout(self.network) if training else nullcontext():  # dropout would change a gradient too
                yield

    def _is_random(self, pair: Pair, gradient: Tensor) -> bool:
        """Whether a pass draws random numbers: these differ for a padded example, so the comparison shows nothing."""
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
        engine.boundary.isolation = "trust"  # one example, and everything is restored after the pass
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
    """One random row from each of ``MEASURED`` parts of the data set."""
    ends = np.linspace(0, size, min(MEASURED, size) + 1).astype(int)
    return draw.integers(ends[:-1], ends[1:])
