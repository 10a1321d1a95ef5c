"""What a trial pass tells about a network, once: where its parameters are, how large its layers, and what can wait."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.engines.batch import Batch, call_network, map_tensors
from mechanisms.engines.capture import Recorder
from mechanisms.engines.isolation import isolated
from mechanisms.engines.parameters import trainable_parameters
from mechanisms.engines.pool_first import PoolFirst, pooling_of
from mechanisms.engines.sites import Site, find_sites
from mechanisms.engines.substitutes import shared_draws
from mechanisms.engines.undisturbed import undisturbed
from monitors.errors import UnsupportedModuleError


@dataclass(frozen=True)
class Survey:
    """Facts about a network in one mode, for all its passes.

    Args:
        parameters: Trainable parameters by name.
        sites: Modules to watch.
        entries_per_example: Numbers that one example adds to what the watched layers are given and give.
        vectors_only: Whether every watched tensor is one vector per example.
        pools: Whether there is a max-pooling that can be made faster; else passes are spared the look at every call.
        before_pools: Activations that may wait for the max-pooling behind them; emptied by a pass of another order.
        shared_draws: Whether a random number decides on the way through the network, so that all examples share it.
    """

    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    entries_per_example: float = 0.0
    vectors_only: bool = True
    pools: bool = False
    before_pools: set[int] = field(default_factory=set)
    shared_draws: bool = False

    @classmethod
    def of(cls, network: nn.Module, batch: Batch) -> Survey:
        """Survey ``network`` with copies of the batch's first example; random state and buffers stay as they were.

        Raises:
            UnsupportedModuleError: A layer mixes examples, or has no per-example gradient as it is set up.
        """
        sites, x = find_sites(network), _copies(batch.x)
        with undisturbed(network), torch.enable_grad():
            recorder, shared = _tried(network, sites, x)
            with draws_of(shared):
                pools, before_pools = pooling_of(lambda: _pass(network, x))
        shapes = [shape for record in recorder.records for shape in record.shapes]
        return cls(
            trainable_parameters(network),
            sites,
            sum(map(math.prod, shapes)) / _TRIED,
            all(math.prod(shape) == shape[0] * shape[-1] for shape in shapes if shape),
            pools,
            set(before_pools),
            shared,
        )


def draws_of(shared: bool) -> AbstractContextManager[None]:
    """Passes of a network whose examples share random numbers of no dimension, or do not."""
    return shared_draws() if shared else nullcontext()


def _tried(network: nn.Module, sites: Sequence[Site], x: Any) -> tuple[Recorder, bool]:
    """The records of a trial pass, and whether it can be had only if the examples share random numbers."""
    problem: UnsupportedModuleError | None = None
    for shared in (False, True):
        recorder = Recorder(_TRIED)
        try:
            with recorder.watching(sites), PoolFirst(), draws_of(shared):
                _pass(network, x)
            return recorder, shared
        except UnsupportedModuleError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _pass(network: nn.Module, x: Any) -> None:
    def of_one(example: Any) -> Tensor:
        call_network(network, example)
        return torch.zeros((), device="cpu")

    isolated(of_one, x)


#: Examples of the trial pass.
_TRIED = 2


def _copies(x: Any) -> Any:
    def copied(value: Tensor) -> Tensor:
        return value[:1].expand(_TRIED, *value.shape[1:]).clone()

    return map_tensors(copied, x)
