"""Facts about a network from one trial pass: its sites, the size of its layers, the activations to defer."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mechanisms.engines.batch import Batch, call_network, map_tensors
from mechanisms.engines.bookkeeping.call_modes import ByOwnParameters, ByRewrite
from mechanisms.engines.bookkeeping.pool_first import PoolFirst, pooling_of
from mechanisms.engines.bookkeeping.recorder import Recorder
from mechanisms.engines.bookkeeping.sites import Site, find_sites
from mechanisms.engines.isolation.isolated import isolated, rows_of
from mechanisms.engines.isolation.substitutes import shared_draws
from mechanisms.engines.parameters import trainable_parameters
from mechanisms.engines.probing import preserve_state
from monitors.errors import UnsupportedModuleError


@dataclass(frozen=True)
class Survey:
    """Facts about a network in one mode, valid for all its passes.

    Args:
        parameters: Trainable parameters by name.
        sites: Modules to watch.
        entries_per_example: Number of entries of the watched layers' inputs and outputs for one example.
        vectors_only: Whether every watched tensor is one vector per example.
        pools: Whether ``PoolFirst`` is needed: for a max-pooling that can be sped up, or an attention that must run on
            the rows of all examples. Otherwise passes avoid the cost of a function mode.
        before_pools: Activations that may be deferred until after their max-pooling; cleared by a pass that uses one of
            them differently.
        shared_draws: Whether control flow depends on a random number, which all examples therefore share.
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
        """Survey ``network`` with copies of the batch's first example; random state and buffers are preserved.

        Raises:
            UnsupportedModuleError: A layer mixes examples, or has no per-example gradient with its settings.
        """
        tried = _copies(batch.select(slice(1)).made())
        with preserve_state(network), torch.enable_grad():
            sites, recorder, shared = _tried(network, tried)
            with draws_of(shared):
                pools, before_pools = pooling_of(lambda: _pass(network, tried))
        shapes = [shape for record in recorder.records for shape in record.shapes]
        return cls(
            trainable_parameters(network),
            sites,
            sum(map(math.prod, shapes)) / _TRIED,
            all(math.prod(shape) == shape[0] * shape[-1] for shape in shapes if shape),
            pools or _has_attention_aside(network, sites),
            set(before_pools),
            shared,
        )


def draws_of(shared: bool) -> AbstractContextManager[None]:
    """Context of a pass whose examples share, or do not share, scalar random numbers."""
    return shared_draws() if shared else nullcontext()


def _tried(network: nn.Module, tried: Batch) -> tuple[list[Site], Recorder, bool]:
    """The sites, the recorder of a trial pass, and whether it works only if examples share scalar random numbers."""
    problem: UnsupportedModuleError | None = None
    for shared in (False, True):
        try:
            with draws_of(shared):
                return *_tried_sites(network, tried), shared
        except UnsupportedModuleError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _tried_sites(network: nn.Module, tried: Batch) -> tuple[list[Site], Recorder]:
    """The sites, and the recorder of a trial pass.

    A module is one whole site if something inside uses parameters of something else inside.
    """
    sites, recorder = find_sites(network), Recorder(_TRIED)
    if any(isinstance(site.how, ByOwnParameters) for site in sites):
        try:
            with recorder.watching(sites), PoolFirst():
                if not _strays(_pass(network, tried), network):
                    return sites, recorder
        except Exception:  # if whole modules do not help, the error is raised again below
            sites = []
        sites, recorder = find_sites(network, whole=True), Recorder(_TRIED)
    with recorder.watching(sites), PoolFirst():
        _pass(network, tried)
    return sites, recorder


def _strays(nodes: list[Any], network: nn.Module) -> bool:
    """Whether a trainable parameter is used outside the forward pass of the module that owns it."""
    ahead, seen = list(nodes), set(nodes)
    trained = set(map(id, trainable_parameters(network).values()))
    while ahead:
        node = ahead.pop()
        if id(getattr(node, "variable", None)) in trained:
            return True
        found = [source for source, _ in node.next_functions if source is not None and source not in seen]
        seen.update(found)
        ahead += found
    return False


def _has_attention_aside(network: nn.Module, sites: list[Site]) -> bool:
    """Whether an attention layer on a GPU (a frozen one, for instance) runs torch's own function."""
    rewritten = {id(site.module) for site in sites if isinstance(site.how, ByRewrite)}
    layers = (layer for layer in network.modules() if isinstance(layer, nn.MultiheadAttention))
    return any(id(layer) not in rewritten and layer.out_proj.weight.device.type != "cpu" for layer in layers)


def _pass(network: nn.Module, tried: Batch) -> list[Any]:
    """Run a pass without a loss; return the autograd nodes of its outputs."""
    nodes: list[Any] = []

    def of_one(example: Any) -> Tensor:
        outputs = tree_leaves(call_network(network, tried.rows_of(example)))
        for value in (*outputs, *(part for output in outputs for part in tree_leaves(getattr(output, "__dict__", {})))):
            rows = rows_of(value)
            if rows is not None and rows.grad_fn is not None:
                nodes.append(rows.grad_fn)
        return torch.zeros((), device="cpu")

    isolated(of_one, tried.x)
    return nodes


#: Number of examples in the trial pass.
_TRIED = 2


def _copies(batch: Batch) -> Batch:
    def copied(value: Tensor) -> Tensor:
        return value[:1].expand(_TRIED, *value.shape[1:]).clone()

    return batch.with_examples(map_tensors(copied, batch.x), map_tensors(copied, batch.y))
