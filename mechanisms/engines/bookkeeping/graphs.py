"""CUDA graphs of passes: the kernels of a pass, launched together and without Python.

A pass on a GPU launches hundreds of small kernels, and Python may need longer to launch them than the GPU to run them.
A pass that equals an earlier one in everything but its data launches the same kernels on the same memory, so they are
recorded once and replayed from then on.

Clip mechanisms are Python code. If all that their factors depend on besides the norms is known, and constant, a pass is
recorded as a whole. Otherwise the factors are not recorded, and a pass has two recordings: from the examples to the
norms, and from the factors to the clipped sum.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mechanisms.engines.batch import Batch, all_tensors, map_tensors
from mechanisms.engines.cuda_graphs import Record, as_cuda_graphs, equal_but_rounding, why_it_failed
from mechanisms.engines.host_copy import HostCopy
from mechanisms.engines.state.pass_boundary import PassBoundary
from mechanisms.engines.state.python_state import PythonState
from monitors.errors import UnprotectedUpdateError

#: Equal passes in a row after which a pass is recorded: the first ones choose formulas, and load kernels.
EQUAL_PASSES = 2

#: Recorded passes that are kept. Each holds the memory of a pass.
KEPT = 2

#: Largest relative difference between a pass and its first replay: the order of additions may differ.
ROUNDING = 0.01


@dataclass(frozen=True)
class PassParts:
    """The parts of a pass.

    Args:
        norms_of: From a batch to the terms of its clipped sum, the norms (units, blocks) and the counts.
        factors_of: From the norms and ``batch.real`` to the clip factors; norms and factors have shape (units, blocks).
        add: Adds the clipped sum of the terms, given the factors, to ``total``.
        total: Shape (P,).
        constants: All that ``factors_of`` depends on besides the norms; None if that is not known.
    """

    norms_of: Callable[[Batch], tuple[Any, Tensor, Tensor]]
    factors_of: Callable[[Tensor, Tensor | None], Tensor]
    add: Callable[[Any, Tensor], None]
    total: Tensor
    constants: Hashable = None

    def run(self, batch: Batch) -> tuple[Tensor, HostCopy]:
        """Run the pass; return the norms and the counts."""
        terms, norms, found = self.norms_of(batch)
        counts = HostCopy(found)
        self.add(terms, self.factors_of(norms, batch.real))
        return norms, counts


class RecordedPass:
    """A pass whose kernels are recorded.

    Args:
        parts: The pass.
        batch: A batch of the shapes to come, with memory of its own; later batches are copied into it.
        norms: Norms of an equal pass.
        record: Records a function.
        whole: Record the factors too.
    """

    def __init__(self, parts: PassParts, batch: Batch, norms: Tensor, record: Record, *, whole: bool) -> None:
        self._batch, self._factors = batch, torch.zeros_like(norms)
        self._norms, self._counts = torch.zeros_like(norms), norms.new_zeros(2, dtype=torch.float64)
        terms: list[Any] = []

        def to_norms() -> None:
            terms.clear()
            found, norms, counts = parts.norms_of(self._batch)
            self._norms.copy_(norms)
            self._counts.copy_(counts)
            terms.append(found)

        def from_factors() -> None:
            parts.add(terms[0], self._factors)

        def all_of_it() -> None:
            to_norms()
            self._factors.copy_(parts.factors_of(self._norms, self._batch.real))
            from_factors()

        self._whole = record(all_of_it) if whole else None
        if self._whole is None:
            self._to_norms, self._from_factors = record(to_norms), record(from_factors)
        terms.clear()  # now only a replay reaches the tensors of a pass

    def run(self, parts: PassParts, batch: Batch) -> tuple[Tensor, HostCopy]:
        """Replay the pass on a batch, with the current factors; return the norms and the counts."""
        for held, value in zip(_tensors(self._batch), _tensors(batch), strict=True):
            held.copy_(value, non_blocking=True)
        if self._whole is not None:
            self._whole()
            return self._norms.clone(), HostCopy(self._counts)
        self._to_norms()
        norms, counts = self._norms.clone(), HostCopy(self._counts)
        self._factors.copy_(parts.factors_of(norms, batch.real))
        self._from_factors()
        return norms, counts


class PassGraphs:
    """Runs passes, and decides which are recorded and replayed.

    A pass is recorded after ``EQUAL_PASSES`` equal ones in a row that neither drew random numbers nor changed Python
    state. A recording is used only if its first replay gives the norms and the sum of the pass itself.

    Args:
        enabled: Whether to record at all.
        record: Makes a function that records; None: as CUDA graphs, on a GPU only.

    Attributes:
        refusal: Why passes are not recorded; None if nothing prevents it.
        recorded: Number of recordings so far.
    """

    def __init__(self, enabled: bool = True, record: Callable[[], Record] | None = None) -> None:
        self.enabled = enabled
        self.refusal: str | None = None
        self.recorded = 0
        self._record = record
        self._kept: OrderedDict[Hashable, RecordedPass] = OrderedDict()
        self._last: Hashable = None
        self._last_constants: Hashable = None
        self._equal = 0

    def records_on(self, device: torch.device) -> bool:
        """Whether passes on this device are recorded once they are equal."""
        return self.enabled and self.refusal is None and (self._record is not None or device.type == "cuda")

    def run(self, key: Hashable, parts: PassParts, batch: Batch, boundary: PassBoundary) -> tuple[Tensor, HostCopy]:
        """Run or replay a pass.

        Args:
            key: All that its kernels depend on but the values of tensors; None if it must not be recorded.
            parts: The pass.
            batch: Non-empty.
            boundary: Surrounds each pass that is not a replay.

        Returns:
            The norms (units, blocks) and the counts.
        """
        for place in () if key is None else ((key, parts.constants), (key, None)):
            if place in self._kept:
                self._kept.move_to_end(place)
                return self._kept[place].run(parts, batch)
        due = key is not None and key == self._last and self._equal >= EQUAL_PASSES
        before = parts.total.clone() if due else None
        with boundary.around(batch):
            found = parts.run(batch)
        if due and before is not None and boundary.varies is None:
            self._make(key, parts, batch, boundary, before, found)
        elif key is not None:
            self._note(key, parts.constants, boundary.varies)
        return found

    def refuse(self, reason: str) -> None:
        """Record and replay no more passes."""
        self.refusal = reason
        self.forget()

    def forget(self) -> None:
        """Drop all recordings, and free their memory."""
        self._kept.clear()
        self._last, self._last_constants, self._equal = None, None, 0

    def words(self, device: torch.device | None) -> str | None:
        """How passes are launched, in words; None if there is nothing to say."""
        if self.recorded and self.refusal is None:
            return f"equal passes are replayed as CUDA graphs ({self.recorded} recorded)"
        if not self.enabled or device is None or device.type != "cuda":
            return None
        if self.refusal is not None:
            return f"passes are not replayed as CUDA graphs: {self.refusal}"
        return f"passes are replayed as CUDA graphs once {EQUAL_PASSES} in a row were equal in all but their data"

    def _note(self, key: Hashable, constants: Hashable, varies: str | None) -> None:
        """Note a pass that was not recorded, and why the next one with the same key may differ, if it may."""
        if varies is not None:
            self.refuse(varies)
        self._equal = self._equal + 1 if key == self._last else 1
        self._last, self._last_constants = key, constants

    def _make(
        self,
        key: Hashable,
        parts: PassParts,
        batch: Batch,
        boundary: PassBoundary,
        before: Tensor,
        found: tuple[Tensor, HostCopy],
    ) -> None:
        """Record a pass that has just run: it added to ``before`` and gave ``found``."""
        total, expected = parts.total, parts.total.clone()
        whole = parts.constants is not None and parts.constants == self._last_constants
        own = _reversed(batch)  # a replay that read this batch instead of the next one would show at once
        try:
            with boundary.around(own, watched=True):  # a tensor that escaped would show all batches to come
                record = self._record() if self._record is not None else as_cuda_graphs(total.device)
                made = RecordedPass(parts, own, found[0], record, whole=whole)
        except UnprotectedUpdateError:
            raise
        except Exception as error:  # whatever in the network or in PyTorch cannot be recorded
            self.refuse(why_it_failed(error))
            return
        finally:
            total.copy_(expected)
        if boundary.varies is not None:
            self.refuse(boundary.varies)
            return
        total.copy_(before)
        norms, counts = made.run(parts, batch)
        results = total - before, norms, torch.tensor(counts.read())
        wanted = expected - before, found[0], torch.tensor(found[1].read())
        same = all(equal_but_rounding(*pair, ROUNDING) for pair in zip(results, wanted, strict=True))
        total.copy_(expected)
        if not same:
            self.refuse("the first replay differed from the pass")
            return
        self.recorded += 1
        self._kept[key, parts.constants if whole else None] = made
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def cannot_replay(state: PythonState, device: torch.device) -> str | None:
    """Why a replay on a device may differ from a pass without notice; None if it cannot."""
    if state.opaque:
        return f"the network or the loss reads {state.opaque[0]}, whose changes are not noticed"
    elsewhere = next((value.device for value in state.read if value.device != device), None)
    if elsewhere is not None:  # kernels take single numbers from the host as constants
        return f"a tensor of the network or the loss is on {elsewhere}, not on {device}"
    return None


def shapes_of(batch: Batch) -> Hashable:
    """All that the kernels of a pass depend on in its batch."""
    layouts = ((value.shape, value.stride(), value.dtype, value.device) for value in _tensors(batch))
    return batch.num_units, batch.real is None, batch.multiplicity, *layouts


def _tensors(batch: Batch) -> list[Tensor]:
    of_units = [value for value in (batch.group_ids, batch.real) if value is not None]
    return [*all_tensors(batch.x), *all_tensors(batch.y), *of_units]


def _reversed(batch: Batch) -> Batch:
    """The batch in reverse order, in memory of its own with the same layout."""

    def backwards(value: Tensor) -> Tensor:
        return torch.empty_like(value).copy_(value.flip(0))

    group_ids, real = (None if value is None else backwards(value) for value in (batch.group_ids, batch.real))
    x, y = map_tensors(backwards, batch.x), map_tensors(backwards, batch.y)
    return replace(batch, x=x, y=y, group_ids=group_ids, real=real)
