"""What all ranks must agree on before the first release: software, settings, data set, weights and coins."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dpmodel.data.generators import Generators
from mechanisms.engines.batch import all_tensors
from monitors.errors import UnsupportedModuleError

if TYPE_CHECKING:
    from dpmodel.data.loader import PrivateLoader
    from dpmodel.preflight.trial import Trial
    from dpmodel.training.run import Run

#: Rows, spread over the data set, whose contents are compared.
COMPARED_ROWS = 64

#: Bytes of the shared key of the coins.
_KEY_BYTES = 48

#: Wrappers of torch that reduce or shard gradients themselves, by class name -> what to pass instead.
_WRAPPERS = {
    "DistributedDataParallel": "pass the module inside it (network.module): dpmodel adds up the clipped sums of the "
    "ranks itself",
    "DataParallel": "pass the module inside it (network.module), and start one process per device with torchrun",
    "FullyShardedDataParallel": "pass the module before it is wrapped; each rank holds the whole network",
    "FSDPModule": "pass the module before fully_shard; each rank holds the whole network. One that does not fit "
    "trains in a loop of your own, with dpmodel.distributed.sharded.ShardedStep",
}


def require_bare(network: nn.Module) -> None:
    """Refuse a network inside a wrapper that reduces or shards gradients: they would be averaged without clipping.

    Parameters that are sharded in any other way are refused as well.

    Raises:
        UnsupportedModuleError: Names the module or parameter, and what to pass instead.
    """
    for name, module in network.named_modules():
        found = next((base.__name__ for base in type(module).__mro__ if base.__name__ in _WRAPPERS), None)
        if found is not None:
            where = f"the module {name!r} of the network" if name else "the network"
            raise UnsupportedModuleError(
                f"{where} is wrapped by {found}, which exchanges gradients before they are clipped; {_WRAPPERS[found]}"
            )
    for name, parameter in network.named_parameters():
        if any(base.__name__ == "DTensor" for base in type(parameter).__mro__):
            raise UnsupportedModuleError(
                f"the parameter {name!r} of the network is a DTensor, of which each rank may hold a part. Norms would "
                "be those of the parts, and each part would get noise of its own. Pass a network of plain tensors; one "
                "that does not fit on a device trains in a loop of your own, with "
                "dpmodel.distributed.sharded.ShardedStep"
            )


def require_agreement(trial: Trial) -> None:
    """Compare the ranks, give all of them the weights of rank 0 and one secret key for the coins of the sampling.

    Raises:
        DistributedError: The ranks differ; says in what.
    """
    run = trial.run
    ranks, sampler = run.ranks, run.plan.sampler
    if ranks.size == 1:
        return
    for name, value in _shown(run, trial).items():
        ranks.same(name, re.sub(r" at 0x[0-9a-fA-F]+", "", value))
    for name, value in _not_shown(trial).items():
        ranks.same(name, value, shown=False)
    ranks.meet("the comparison of the ranks")
    ranks.spread(chain(trial.network.parameters(), trial.network.buffers()))
    key = ranks.share(os.urandom(_KEY_BYTES))
    if not sampler.generator.reproducible:
        sampler.generator.follow(key)


def state_weights(run: Run) -> None:
    """State a digest of the weights and buffers, which all ranks must have; compared at the next meeting."""
    if run.ranks.size > 1:
        run.ranks.same("the weights", digest_of(_named(run.network)), shown=False)


def _shown(run: Run, trial: Trial) -> dict[str, str]:
    import dpmodel

    model, plan, loader = trial.model, run.plan, trial.loader
    groups = [{k: v for k, v in group.items() if k != "params"} for group in model.optimizer.param_groups]
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in _named(model.network)]
    last = max(run.planned_steps - 1, run.first_step)
    return {
        "the versions": f"dpmodel {dpmodel.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "the network": type(model.network).__name__,
        "the parameters and buffers": hashlib.sha256(repr(shapes).encode()).hexdigest()[:8],
        "the trainable parameters": str([p.requires_grad for p in model.network.parameters()].count(True)),
        "the loss": type(model.loss_fn).__name__ + getattr(model.loss_fn, "__qualname__", ""),
        "the optimizer": f"{type(model.optimizer).__name__} {groups}",
        "the noise": f"{plan.noise!r}, {plan.event(run.first_step)!r} to {plan.event(last)!r}",
        "the clipping": f"{plan.clip!r}, {plan.unit!r}",
        "the sampling": f"{plan.sampler.describe()}, batches of {plan.sampler.batch_size}",
        "the seeds": f"{model.seed}, {_positions(run)}",
        "the number of examples": str(loader.num_examples),
        "the workers of the loader": f"{loader.num_workers}, {loader.worker_options.get('prefetch_factor')}",
        "the steps": f"{run.first_step} to {run.planned_steps}, {run.steps_per_epoch} per epoch, from {run.step}",
        "the validation data": str(run.has_validation),
        "the settings of DPModel": f"{model.precision}, {model.isolation}, on {model.device.type}",
        "the augmentation": repr(trial.augmentation),
        "the delta": repr(run.delta),
    }


def _positions(run: Run) -> list[tuple[str, bool, int | None]]:
    """Positions of the streams that all ranks draw from; rank 0 alone draws the noise, so the others stay behind."""
    return [
        (name, stream.reproducible, stream.position if name == "sampling" else None)
        for name, stream in sorted(run.streams.items())
    ]


def _not_shown(trial: Trial) -> dict[str, str]:
    model, loss = trial.model, trial.model.loss_fn
    held = _named(loss) if isinstance(loss, nn.Module) else []
    state = [(f"{i}.{key}", value) for i, entry in _states(model.optimizer) for key, value in sorted(entry.items())]
    return {
        "the ledger": hashlib.sha256("".join(sorted(map(repr, trial.run.ledger))).encode()).hexdigest(),
        "the loss's parameters": digest_of(held),
        "the optimizer's state": digest_of([(key, value) for key, value in state if isinstance(value, Tensor)]),
        "the data set": data_digest(trial.loader),
    }


def _states(optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, Any]]:
    return enumerate(optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"])


def _named(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def digest_of(tensors: list[tuple[str, Tensor]]) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        value = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(value.view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()


def data_digest(loader: PrivateLoader) -> str:
    """A digest of some rows of the data set, in their order; parts that are random are left out.

    Rows are read twice after all generators were seeded alike. What differs then cannot be compared.
    """
    generators = Generators(loader.dataset, loader.fetcher.collate_fn)
    digest = hashlib.sha256()
    rows = np.unique(np.linspace(0, loader.num_examples - 1, COMPARED_ROWS).astype(int))
    with generators.preserved():
        for row in rows:
            first, second = (_leaves(loader, generators, row) for _ in range(2))
            digest.update(f"{row} {len(first)};".encode())
            for one, other in zip(first, second, strict=False):
                if one.shape == other.shape and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)):
                    digest.update(digest_of([("", one)]).encode())
    return digest.hexdigest()


def _leaves(loader: PrivateLoader, generators: Generators, row: int) -> list[Tensor]:
    generators.seed(int(row))
    return all_tensors(loader.fetcher[np.array([row])])
