"""What a few trial passes tell about a network, once: where its parameters and examples are, and what can wait."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.engines.axes import AxisBook
from mechanisms.engines.batch import Batch, call_network, map_tensors
from mechanisms.engines.capture import Recorder
from mechanisms.engines.parameters import trainable_parameters
from mechanisms.engines.pool_first import pooling_of
from mechanisms.engines.row_order import RowOrder
from mechanisms.engines.sites import Site, find_sites
from mechanisms.engines.undisturbed import seed_generators, undisturbed


@dataclass(frozen=True)
class Survey:
    """Facts about a network in one mode, for all its passes.

    Args:
        parameters: Trainable parameters by name.
        sites: Modules to watch.
        axes: Where the examples lie in every watched call.
        pools: Whether there is a max-pooling that can be made faster; else passes are spared the look at every call.
        before_pools: Activations that may wait for the max-pooling behind them; emptied by a pass of another order.
    """

    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    axes: AxisBook = field(default_factory=AxisBook)
    pools: bool = False
    before_pools: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, network: nn.Module, batch: Batch) -> Survey:
        """Survey ``network`` with copies of the batch's first example; random state and buffers stay as they were.

        Raises:
            UnsupportedModuleError: A layer mixes examples, or has no per-example gradient as it is set up.
        """
        sites, axes = find_sites(network), AxisBook()
        with undisturbed(network), torch.enable_grad():
            RowOrder.refuse(_trial_passes(axes, sites, network, batch))
            if network.training and not all(axes.has(site.name) for site in sites):
                # What training leaves out at random, evaluation takes; where it fails it teaches nothing.
                with suppress(Exception), undisturbed(network):
                    _trial_passes(axes, sites, network.eval(), batch)
            axes.known = True
            pools, before_pools = pooling_of(network, _copies(batch.x, AxisBook.sizes[0]))
        return cls(trainable_parameters(network), sites, axes, pools, set(before_pools))


def _trial_passes(axes: AxisBook, sites: Sequence[Site], network: nn.Module, batch: Batch) -> list[RowOrder]:
    """Learn where examples lie from one pass of each size; what may have moved rows in each of them."""
    orders = [RowOrder(size) for size in AxisBook.sizes]
    for size, order in zip(AxisBook.sizes, orders, strict=True):
        axes.begin_pass()
        seed_generators(network, 0)  # both passes leave out the same, where a layer is left out at random
        with Recorder(size, axes).watching(sites), order:
            call_network(network, _copies(batch.x, size))
    axes.compare()
    return orders


def _copies(x: Any, count: int) -> Any:
    def copied(value: Tensor) -> Tensor:
        return value[:1].expand(count, *value.shape[1:]).clone()

    return map_tensors(copied, x)
