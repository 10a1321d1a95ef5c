"""The physical batch size that keeps a step within a memory budget."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mechanisms.clipping import Fixed
from mechanisms.engines.base import Engine
from mechanisms.engines.batch import Batch, first_tensor, map_tensors
from mechanisms.engines.losses import LossFunction
from mechanisms.engines.probing import preserve_state
from monitors import checks
from monitors.errors import ConfigError

#: Share of the free memory that a step may use by default.
FREE_SHARE = 0.5

#: Number of units in the two trial steps, from which the memory per unit is computed.
_TRIALS = (2, 6)


#: Files with the memory limit and usage of a container on Linux: control groups version 2, then version 1.
_GROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free_memory(device: torch.device) -> int:
    """Free bytes on ``device``; in a container, within its limit.

    Raises:
        ConfigError: The system does not report it.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(min(_left_on_machine(), _left_in_group()))


def _left_on_machine() -> float:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return _free_pages()


def _free_pages() -> float:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError) as error:
        raise ConfigError(
            "this system does not report its free memory; set physical_batch_size to a number instead of 'auto'"
        ) from error


def _left_in_group() -> float:
    """Bytes left within the limit of the container, if there is one."""
    for limit, used in _GROUP_FILES:
        try:
            return max(0, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return math.inf


def auto_physical_batch_size(
    engine: Engine, network: nn.Module, loss_fn: LossFunction, example: Batch, *, budget_bytes: int | None = None
) -> int:
    """The largest number of examples per chunk that stays within the budget; it does not change the results.

    Two trial steps on copies of ``example`` give the memory per additional unit. The memory of the weights and of the
    data set does not count. The network, its buffers and the random state are preserved.

    Args:
        engine: The engine that will run.
        network: The network, in the mode and on the device in which it will be trained.
        loss_fn: The user's loss.
        example: At least one example.
        budget_bytes: Positive. Default: half of the free memory.

    Returns:
        At least the examples of one unit, even if they exceed the budget.

    Example:
        >>> from mechanisms.engines import BookKeepingEngine
        >>> from mechanisms.units import ClippedUnit
        >>> engine, network = BookKeepingEngine(ClippedUnit(1, 64)), nn.Linear(1000, 10)
        >>> example = Batch(torch.zeros(1, 1000), torch.zeros(1, dtype=torch.long))
        >>> size = auto_physical_batch_size(engine, network, nn.CrossEntropyLoss(), example, budget_bytes=2**20)
        >>> 1000 < size < 100_000
        True
    """
    device = next(network.parameters()).device
    budget = FREE_SHARE * free_memory(device) if budget_bytes is None else budget_bytes
    checks.positive(budget_bytes=budget)
    group = engine.unit.group_size
    batches = (_copies(example, units, group) for units in _TRIALS)
    few, many = (_peak_of_step(device, engine, network, loss_fn, batch) for batch in batches)
    per_unit = max((many - few) / (_TRIALS[1] - _TRIALS[0]), 1.0)
    constant = max(few - _TRIALS[0] * per_unit, 0.0)
    return group * max(1, int((budget - constant) / per_unit))


def _copies(example: Batch, units: int, group: int) -> Batch:
    def repeated(value: Tensor) -> Tensor:
        return value[:1].expand(units * group, *value.shape[1:]).clone()

    device = first_tensor(example.x).device
    ids = None if group == 1 else torch.arange(units, device=device).repeat_interleave(group)
    copies = example.with_examples(map_tensors(repeated, example.x), map_tensors(repeated, example.y))
    return replace(copies, group_ids=ids, units=None if ids is None else units)


def _peak_of_step(device: torch.device, engine: Engine, network: nn.Module, loss_fn: LossFunction, batch: Batch) -> int:
    engine.release()
    peak = peak_bytes(device, partial(_step, engine, network, loss_fn, batch)) + engine.held_bytes
    engine.release()
    return peak


def _step(engine: Engine, network: nn.Module, loss_fn: LossFunction, batch: Batch) -> None:
    clip = Fixed()
    clip.start(1.0)
    stated, engine.physical_batch_size = engine.physical_batch_size, batch.size
    try:
        with preserve_state(network, loss_fn):
            engine.clipped_sum(network, loss_fn, batch, clip)
    finally:
        engine.physical_batch_size = stated


def peak_bytes(device: torch.device, step: Callable[[], object]) -> int:
    """Peak memory, in bytes, of tensors allocated by ``step``; excludes what engines keep (``held_bytes``)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before: int = torch.cuda.memory_allocated(device)
        step()
        peak: int = torch.cuda.max_memory_allocated(device)
        return peak - before
    step()  # one-time allocations do not count
    allocations = _Allocations()
    with allocations:
        step()
    return allocations.peak


class _Allocations(TorchDispatchMode):
    """Counts the bytes of live storages that operations allocate."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.peak = 0, 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        given = {id(value.untyped_storage()) for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)}
        output = func(*args, **(kwargs or {}))
        for value in tree_flatten(output)[0]:
            if isinstance(value, Tensor):
                self._count(value.untyped_storage(), given)
        return output

    def _count(self, storage: Any, given: set[int]) -> None:
        if id(storage) in given or storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.live -= size
