"""``engine="auto"``: the fastest engine that supports the network, and the reason in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mechanisms.engines.base import ENGINES, Engine
from mechanisms.engines.batch import Batch, call_network, map_tensors
from mechanisms.engines.losses import LossFunction
from mechanisms.engines.memory import auto_physical_batch_size
from mechanisms.engines.precision import require_full_products
from mechanisms.engines.probing import preserve_state
from mechanisms.units import ClippedUnit
from monitors import checks
from monitors.errors import UnsupportedModuleError
from monitors.signatures import signature

#: Fastest first; the last one supports everything.
PREFERENCE: tuple[str, ...] = ("bookkeeping", "vmap", "loop")


#: Supports every network whose isolation is trusted.
_LAST_RESORT = "loop"


@dataclass(frozen=True)
class Choice:
    """An engine and why it was chosen.

    Args:
        engine: The engine, ready for use.
        reason: The reason, in one sentence.
        slower: Why it is not the fastest engine, in one sentence; empty if it is, or if it was requested by name.
    """

    engine: Engine
    reason: str
    slower: str = ""


def choose_engine(
    name: str,
    network: nn.Module,
    loss_fn: LossFunction,
    unit: ClippedUnit,
    example: Batch,
    *,
    physical_batch_size: int | str | None = None,
    memory_budget: int | None = None,
    options: Mapping[str, Any] | None = None,
    preference: Sequence[str] = PREFERENCE,
    isolation: str = "verified",
    capacity: int | None = None,
) -> Choice:
    """The engine called ``name``, or for ``"auto"`` the first in ``preference`` that supports the network.

    Args:
        name: ``"auto"`` or a registered engine.
        network: The network, in the mode in which it will be trained.
        loss_fn: The user's loss.
        unit: The clipped unit.
        example: A few examples with the shapes and types of the data; results are discarded.
        physical_batch_size: Passed to the engine; ``"auto"``: as many examples as fit ``memory_budget``.
        memory_budget: Bytes that a step may use with ``"auto"``. Default: half of the free memory.
        options: Further keyword arguments of the engine, such as ``precision="bf16"``; ``"auto"`` skips engines that do
            not accept them.
        preference: Order in which ``"auto"`` tries the engines.
        isolation: ``"verified"`` refuses a network that keeps state of an example that cannot be restored; ``"trust"``
            accepts it.
        capacity: For static shapes, the number of rows of each chunk, unless the physical batch size is smaller.

    Raises:
        UnsupportedModuleError: The named engine, or every engine, does not support the network; says why.
        ValueError: Unknown name, or a physical batch size that is neither a number nor ``"auto"``.
        ConfigError: torch is set to reduced-precision float32 products.
    """
    require_full_products()
    if isinstance(physical_batch_size, str) and physical_batch_size != "auto":
        raise ValueError(f"physical_batch_size must be a positive integer, 'auto' or None, got {physical_batch_size!r}")
    if capacity is not None:
        checks.positive_int(capacity=capacity)
    example = example.with_examples(
        *(map_tensors(torch.clone, value) for value in (example.x, example.y))
    )  # networks may write to their input
    _refuse_reentrant(network, example)
    refusals: list[str] = []
    for candidate in preference if name == "auto" else (name,):
        if capacity is not None and not ENGINES.get(candidate).takes_fillers:
            refusal: str | None = "it does not give fillers weight 0 (takes_fillers), which static_shapes needs"
        elif example.multiplicity is not None and not ENGINES.get(candidate).takes_views:
            refusal = "it does not average over the views of an example (takes_views), which augmentation needs"
        else:
            refusal = _refusal(candidate, options or {}, network, loss_fn, unit, example)
        if refusal is None or (isolation == "trust" and candidate == _LAST_RESORT):
            limit = None if isinstance(physical_batch_size, str) else physical_batch_size
            engine: Engine = ENGINES.create(candidate, unit, limit, **_accepted(candidate, options or {}))
            engine.boundary.isolation = isolation
            if physical_batch_size == "auto":
                engine.physical_batch_size = auto_physical_batch_size(
                    engine, network, loss_fn, example, budget_bytes=memory_budget
                )
            engine.capacity = capacity
            return Choice(engine, _reason(candidate, refusals, asked=name != "auto"), _slower(candidate, refusals))
        refusals.append(f"not {candidate!r} because {refusal}")
        if name != "auto":
            other = (
                "engine='auto' or 'loop'"
                if name != _LAST_RESORT
                else "isolation='trust' if you know that it treats examples independently"
            )
            raise UnsupportedModuleError(f"engine {name!r} cannot be used: {refusal}. Use {other}")
    raise UnsupportedModuleError(
        f"no engine supports this network: {'; '.join(refusals)}. If you know that it treats examples independently, "
        "isolation='trust' trains it, and marks the ledger and the report"
    )


def _reason(name: str, refusals: Sequence[str], *, asked: bool) -> str:
    if asked:
        return f"engine {name!r} was requested"
    return "; ".join([f"engine {name!r}: the fastest exact engine for this network", *refusals])


def _slower(name: str, refusals: Sequence[str]) -> str:
    if not refusals:
        return ""
    why = refusals[0].partition(". ")[0].rstrip(".")
    return f"this network is trained by engine {name!r}, which is slower: {why}. explain_engine() says more"


def _refusal(
    name: str, options: Mapping[str, Any], network: nn.Module, loss_fn: LossFunction, unit: ClippedUnit, example: Batch
) -> str | None:
    engine = ENGINES.get(name)
    accepted = _accepted(name, options)
    # An engine without an option may be as the option asks anyway: without CUDA graphs, for example.
    unknown = [each for each, value in options.items() if each not in accepted and getattr(engine, each, None) != value]
    if unknown:
        return f"it has no option {', '.join(map(repr, unknown))}"
    with preserve_state(network, loss_fn):
        return engine.refuses(network, loss_fn, unit, example)


def _accepted(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    known = signature(ENGINES.get(name)).parameters
    any_option = any(each.kind is Parameter.VAR_KEYWORD for each in known.values())
    return {option: value for option, value in options.items() if option in known or any_option}


def _refuse_reentrant(network: nn.Module, example: Batch) -> None:
    with preserve_state(network), torch.enable_grad():
        try:
            outputs = call_network(network, example.rows)
        except Exception:
            return  # the engines give a better message
    require_no_reentrant(outputs)


def require_no_reentrant(outputs: Any) -> None:
    """Refuse outputs of a network with reentrant activation checkpoints.

    If asked for the gradients of specific tensors, autograd silently omits the contributions of such a checkpoint.

    Args:
        outputs: Computed with gradients.

    Raises:
        UnsupportedModuleError: ``torch.utils.checkpoint`` was used with ``use_reentrant=True``.
    """
    outputs = tree_leaves(outputs)
    held = [part for output in outputs for part in (output, *tree_leaves(getattr(output, "__dict__", {})))]
    ahead, seen = [part.grad_fn for part in held if isinstance(part, Tensor)], set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise UnsupportedModuleError(
                "the network uses torch.utils.checkpoint with use_reentrant=True, inside which per-example gradients "
                "cannot be computed; use use_reentrant=False"
            )
        ahead += [source for source, _ in node.next_functions]
