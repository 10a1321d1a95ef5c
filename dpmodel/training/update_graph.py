"""Updates as a CUDA graph: noise, mean and optimizer step, launched together and without Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dpmodel.training.recordable import cannot_record, settings_of
from mechanisms.chacha.stream import SINGLE_SCALES
from mechanisms.engines.cuda_graphs import as_cuda_graphs, equal_but_rounding, place_of, why_it_failed

if TYPE_CHECKING:
    from dpmodel.training.update import Update

#: Types of device on which updates are recorded.
DEVICES = ("cuda",)

#: Equal updates in a row after which one is recorded: the first ones make the optimizer's state, and load kernels.
EQUAL_UPDATES = 2

#: Largest relative difference between the weights after an update and after its replay.
ROUNDING = 1e-5

#: Largest deviation of the noise of a replay from what it should be, in standard deviations.
MOST_DEVIATIONS = 8.0

#: Entries of the noise that are compared at once, and zeros among them that may be chance.
_BLOCK, _FEW_ZEROS = 1 << 20, 8

#: Further deviations that are allowed for a single number; for more of them, divided by the root of their number.
_FEW_NUMBERS = 20.0

_NO_MEMORY, _MOST_DOUBLINGS = "too little memory to record one", 10


class UpdateGraph:
    """Records an update, and replays it with fresh noise as long as it is the same.

    An update is recorded after ``EQUAL_UPDATES`` equal ones in a row, twice as many after each recording.
    A recording is used only if two replays without noise give the weights and the optimizer's state that two updates
    give, and if the noise of replays is fresh and follows the scale. Recording releases nothing: it works on a sum to
    which noise has been added.

    Args:
        enabled: Whether to record at all.

    Attributes:
        refusal: Why updates are not recorded; None if nothing prevents it.
        recorded: Number of recordings so far.
        updates: Number of updates so far.
        replayed: Number of those that were replays.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.refusal: str | None = None
        self.recorded = self.updates = self.replayed = 0
        self.forget()

    def forget(self) -> None:
        """Drop the recording, and free its memory."""
        self._replay: Callable[[], None] | None = None
        self._scale = torch.zeros((), device="cpu")
        self._key: tuple[Any, ...] | None = None
        self._equal = 0

    def words(self, device: torch.device) -> list[str]:
        """How updates are launched, in words; empty if there is nothing to say."""
        if not self.enabled or device.type not in DEVICES:
            return []
        if self.refusal is not None:
            return [f"  updates are not replayed as CUDA graphs: {self.refusal}"]
        if self.replayed:
            return [f"  {self.replayed:,} of {self.updates:,} updates were replayed as CUDA graphs"]
        return [f"  updates are replayed as CUDA graphs once {EQUAL_UPDATES} in a row were equal in their settings"]

    def records_on(self, device: torch.device) -> bool:
        """Whether updates on this device are recorded once they are equal."""
        return self.enabled and self.refusal is None and device.type in DEVICES

    def key(self, update: Update, scale: float | None) -> tuple[Any, ...] | None:
        """All that an update depends on but the values of tensors and the scale of the noise; None: not recorded.

        Args:
            update: The update.
            scale: Standard deviation of the noise, if it is independent normal noise that is added in place.
        """
        device = update.total.device
        if not self.records_on(device):
            return None
        self._refuse(cannot_record(update.optimizer, None if scale is None else update.generator, device))
        if self.refusal is None and any(value.device != device for value in update.tensors):
            self._refuse("the optimizer holds a tensor on a different device")
        if self.refusal is not None:
            return None
        return self._key_of(update)

    def has(self, key: tuple[Any, ...] | None, scale: float) -> bool:
        """Whether there is a recording of this update that can make noise of this standard deviation."""
        low, high = SINGLE_SCALES
        return self._replay is not None and key is not None and key == self._key and low < scale < high

    def replay(self, scale: float) -> None:
        """Replay the recorded update with fresh noise of standard deviation ``scale``."""
        assert self._replay is not None
        self._scale.fill_(scale)
        self._replay()
        self.updates, self.replayed = self.updates + 1, self.replayed + 1

    @contextmanager
    def around_step(self, key: tuple[Any, ...] | None, update: Update) -> Iterator[None]:
        """Use around the optimizer's step of an update that is not a replay; record it if earlier ones were equal.

        Args:
            key: See above.
            update: The update; its ``total`` holds the noisy sum before the block, and the mean afterwards.
        """
        self.updates += 1
        self._equal = self._equal + 1 if key is not None and key == self._key else 1
        self._key, self._replay = key, None
        # Twice as many after each recording: a learning rate may change every few steps.
        due = key is not None and self._equal > EQUAL_UPDATES << min(self.recorded, _MOST_DOUBLINGS)
        before = _copies(update) if due else None
        yield
        if due and before is None:
            self._refuse(_NO_MEMORY)
        elif before is not None and key == self._key_of(update):
            with torch.no_grad():
                self._make(update, before)

    def _key_of(self, update: Update) -> tuple[Any, ...]:
        device = update.total.device
        stream = update.generator.stream_on(device) if device.type == "cuda" else update.generator
        places, settings = map(place_of, update.tensors), settings_of(update.optimizer)
        return stream, type(update.optimizer).step, type(update.plan.noise).add, update.units, *places, *settings

    def _make(self, update: Update, before: Sequence[Tensor]) -> None:
        """Record an update that has just led from ``before`` to the present values."""
        after, later = _copies(update), _copies(update)
        if after is None or later is None:
            self._refuse(_NO_MEMORY)
            return
        total, generator, position = update.total, update.generator, update.generator.state_dict()
        scale = torch.zeros((), dtype=total.dtype, device=total.device)

        def whole() -> None:
            generator.add_normal_(total, scale)
            update.descend(total)

        def without_noise(function: Callable[[], None]) -> None:
            total.copy_(before[0])
            scale.zero_()
            function()

        def noise_of(replay: Callable[[], None], deviation: float) -> Tensor:
            total.zero_()
            scale.fill_(deviation)
            replay()
            return total * (update.units / deviation)

        try:
            with _capturable(update.optimizer):
                without_noise(whole)  # which also loads the kernels
                _write(later, update.tensors)
                if not _is_mean(total, before[0], update.units):
                    raise RuntimeError("the optimizer writes to the gradients; its fused form does not")
                replay = as_cuda_graphs(total.device)(whole)
            _write(update.tensors, before)
            same: list[bool] = []
            for expected in (after, later):
                without_noise(replay)
                same += map(_is_same, update.tensors[1:], expected[1:])
            fresh = _is_fresh(noise_of(replay, 1.0), noise_of(replay, 100.0), update.noisy_entries)
        except Exception as error:  # whatever in an optimizer cannot be recorded
            self._refuse(why_it_failed(error))
            return
        finally:
            _write(update.tensors, after)
            generator.load_state_dict(position)
        if not all(same):
            self._refuse("the first replays differed from the updates")
        elif not fresh:
            self._refuse("the noise of the first replays was not what it should be")
        else:
            self._replay, self._scale, self.recorded = replay, scale, self.recorded + 1

    def _refuse(self, reason: str | None) -> None:
        if reason is not None:
            self.refusal = reason
            self.forget()


@contextmanager
def _capturable(optimizer: Optimizer) -> Iterator[None]:
    """Declares a fused optimizer capturable: its steps are on the device, but torch wants to be told."""
    changed = [group for group in optimizer.param_groups if group.get("capturable") is False]
    for group in changed:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in changed:
            group["capturable"] = False


def _copies(update: Update) -> list[Tensor] | None:
    """Copies of the tensors of an update; None if there is too little memory."""
    try:
        return [value.detach().clone() for value in update.tensors]
    except torch.OutOfMemoryError:
        return None


def _write(places: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for place, value in zip(places, values, strict=True):
        place.copy_(value)


def _is_same(found: Tensor, expected: Tensor) -> bool:
    return torch.equal(found, expected) or (found.is_floating_point() and equal_but_rounding(found, expected, ROUNDING))


def _is_mean(total: Tensor, noisy: Tensor, units: float) -> bool:
    """Whether ``total`` is the mean of a noisy sum, or zero where there is padding."""
    return bool(((total == noisy / units) | (total == 0)).all())


def _is_fresh(one: Tensor, other: Tensor, size: int) -> bool:
    """Whether two vectors are independent standard normal numbers, except for zeros, which leave ``size`` numbers.

    In float32, a normal number is zero once in 2**33 times.
    """
    blocks = list(zip(one.split(_BLOCK), other.split(_BLOCK), strict=True))
    zeros = [sum(int((pair[at] == 0).sum()) for pair in blocks) - (len(one) - size) for at in (0, 1)]
    if any(not 0 <= surplus <= _FEW_ZEROS for surplus in zeros) or torch.equal(one, other):
        return False
    wide = ((first.double(), second.double()) for first, second in blocks)
    sums = torch.stack([torch.stack([a.dot(a), b.dot(b), a.dot(b)]) for a, b in wide]).sum(0)
    squares, others, products = (sums / size).tolist()
    root = math.sqrt(size)
    scales, together = ((squares - 1) * root / math.sqrt(2), (others - 1) * root / math.sqrt(2)), products * root
    # Squares and products of few numbers have longer tails than a normal distribution.
    most = MOST_DEVIATIONS + _FEW_NUMBERS / root
    return all(-MOST_DEVIATIONS <= scale <= most for scale in scales) and abs(together) <= most
