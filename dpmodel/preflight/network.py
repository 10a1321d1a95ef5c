"""``validate`` and ``fix``: whether a network can be trained with per-example privacy, and layers that can."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from dpmodel.nets.frozen_batch_norm import FrozenBatchNorm
from mechanisms.engines.batch import first_tensor, map_tensors, outputs_of
from mechanisms.engines.outputs import output_tensors
from mechanisms.engines.power_iterations import PowerIterations
from mechanisms.engines.probing import draws, perturbed_weights, preserve_state, seed_generators, without_dropout
from mechanisms.engines.state.holders import same_values
from monitors.errors import UnsupportedModuleError

Replace = Callable[[Any], nn.Module]

#: Largest number of groups that a BatchNorm layer is replaced with.
MAX_GROUPS = 32


def _groups(layer: Any) -> int:
    """Groups of the replacement; one for vectors, in which a group of one channel would be a single number."""
    if isinstance(layer, nn.BatchNorm1d):
        return 1
    groups = math.gcd(MAX_GROUPS, layer.num_features)
    # A group of one channel is constant once images have shrunk to one position (squeeze and excitation).
    return max(1, groups // 2) if groups == layer.num_features else groups


def _is_frozen(layer: Any) -> bool:
    """Whether a layer has frozen weights and statistics to keep, as in a pretrained network."""
    trained = any(parameter.requires_grad for parameter in layer.parameters())
    return bool(layer.affine) and not trained and layer.running_mean is not None


def _group_norm(layer: Any) -> nn.Module:
    return nn.GroupNorm(_groups(layer), layer.num_features, eps=layer.eps, affine=layer.affine)


def _instance_norm(layer: Any) -> nn.Module:
    kind: type[nn.Module] = type(layer)
    return kind(layer.num_features, eps=layer.eps, affine=layer.affine, track_running_stats=False)


def _renormalises(layer: Any) -> bool:
    return layer.max_norm is not None or bool(layer.scale_grad_by_freq)


def _plain_table(layer: Any) -> nn.Module:
    plain: Any = copy.deepcopy(layer)
    plain.max_norm, plain.scale_grad_by_freq = None, False
    table: nn.Module = plain
    return table


_TABLE_RULE = (
    "rescales its weights or gradients by the rows that the batch looks up",
    _renormalises,
    "the same layer with max_norm=None and scale_grad_by_freq=False",
    _plain_table,
)

#: Seeds with which a network is run: random mixing may leave examples in place by chance.
_SEEDS = 4

_UNSTEADY = (
    "two equal calls give different outputs: the network remembers data, which would reach later gradients without "
    "clipping and noise, or it draws random numbers outside of torch. Keep no state in forward, and draw from torch"
)

#: Layer class -> rules, the first of which applies: (why it cannot be private, when that is so, its replacement in
#: words, how to build it)
_RULES: dict[type[nn.Module], list[tuple[str, Callable[[Any], bool], str, Replace]]] = {
    nn.modules.batchnorm._BatchNorm: [
        (
            "mixes the examples of a batch",
            _is_frozen,
            "FrozenBatchNorm({channels}), which keeps its statistics because its weights are frozen",
            FrozenBatchNorm.of,
        ),
        (
            "mixes the examples of a batch",
            lambda layer: True,
            "GroupNorm({groups}, {channels})",
            _group_norm,
        ),
    ],
    nn.modules.instancenorm._InstanceNorm: [
        (
            "keeps running statistics of the data without noise",
            lambda layer: bool(layer.track_running_stats),
            "the same layer with track_running_stats=False",
            _instance_norm,
        )
    ],
    nn.Embedding: [_TABLE_RULE],
    nn.EmbeddingBag: [_TABLE_RULE],
}


def _rule(layer: nn.Module) -> tuple[str, str, Replace] | None:
    rules = next((_RULES[kind] for kind in type(layer).__mro__ if kind in _RULES), [])
    for why, applies, instead, build in rules:
        if applies(layer):
            words = instead.format(groups=_groups(layer), channels=layer.num_features) if "{" in instead else instead
            return why, words, build
    return None


def validate(network: nn.Module, example: Any = None) -> list[str]:
    """All reasons why ``network`` cannot be trained with per-example privacy; an empty list means that it can.

    Args:
        network: Any module.
        example: Inputs of at least two examples. The network is then also run, to find layers of any type that mix
            examples, remember data, or write statistics of the data into buffers.

    Example:
        >>> validate(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))
        ["layer '1' (BatchNorm1d) mixes the examples of a batch; replace it with GroupNorm(1, 8), or call dpmodel.fix"]
    """
    problems = _uninitialised(network)
    if problems:
        return problems
    for name, layer in network.named_modules():
        rule = _rule(layer)
        if rule is not None:
            label = f"layer {name!r} ({type(layer).__name__})"
            problems.append(f"{label} {rule[0]}; replace it with {rule[1]}, or call dpmodel.fix")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        problems.append("no parameter requires a gradient; unfreeze some with requires_grad_(True)")
    if example is not None and not problems:
        problems.extend(_probe(network, example))
    return problems


def _uninitialised(network: nn.Module) -> list[str]:
    tensors = (*network.named_parameters(), *network.named_buffers())
    return [
        f"{name!r} is not initialised yet: layers of torch.nn.Lazy... get their shape from the first batch. Call the "
        "network once, for example on zeros of the shape of the data, before you build DPModel"
        for name, value in tensors
        if nn.parameter.is_lazy(value)
    ][:1]


def require_valid(network: nn.Module, example: Any = None) -> None:
    """Raise when ``validate`` finds anything.

    Raises:
        UnsupportedModuleError: Lists every problem and its remedy.
    """
    problems = validate(network, example)
    if problems:
        raise UnsupportedModuleError(
            f"{type(network).__name__} cannot be trained with per-example privacy:\n  - " + "\n  - ".join(problems)
        )


def fix(network: nn.Module) -> nn.Module:
    """A copy of ``network`` in which every layer that ``validate`` names is replaced.

    Replaced layers are newly initialised, without the old weights and statistics. Batch normalisation with frozen
    weights keeps both (``FrozenBatchNorm``), so a frozen, pretrained backbone gives the same features. Build the
    optimizer from the copy.

    Raises:
        UnsupportedModuleError: A lazy layer has not seen a batch, so its size is unknown.

    Example:
        >>> fix(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))[1].num_groups
        1
    """
    problems = _uninitialised(network)
    if problems:
        raise UnsupportedModuleError(problems[0])
    fixed = copy.deepcopy(network)
    rule = _rule(fixed)
    if rule is not None:
        return rule[2](fixed)
    for name, layer in list(fixed.named_modules()):
        rule = _rule(layer)
        if rule is not None:
            parent, _, child = name.rpartition(".")
            setattr(fixed.get_submodule(parent), child, rule[2](layer).to(_device(layer)))
    return fixed


def _device(layer: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in layer.parameters()), None)


def _probe(network: nn.Module, example: Any) -> list[str]:
    """Compare the outputs in training mode of the examples together, of other examples, and of the first one alone."""
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    parameters = {name: value.detach().clone() for name, value in network.named_parameters()}
    held = PowerIterations(network).held()
    with preserve_state(network), without_dropout(network), held, torch.no_grad():
        together = _seeded_call(network, example, keep_buffers=True)
        kept = [(name, value) for name, value in network.named_buffers() if name in buffers]
        changed = [name for name, value in kept if not same_values(value, buffers[name])]
        again = _seeded_call(network, example)
        steady = _equal_nests(together, again, exact=True)
        mixed = steady and _mixes(network, example)
        if steady and not mixed:
            # Layers behind zero weights show nothing yet. Perturbed weights may leave their domain.
            with suppress(Exception), perturbed_weights(network):
                mixed = _mixes(network, example)
        written = [name for name, value in network.named_parameters() if not same_values(value, parameters[name])]
        for name, value in network.named_parameters():
            if name in written:
                value.copy_(parameters[name])
    problems = [
        f"buffer {name!r} changes in the forward pass: statistics of the data would get no noise; freeze them"
        for name in changed
    ]
    problems += [
        f"parameter {name!r} is written to in the forward pass: the data would move it without clipping and noise; "
        "leave updates to the optimizer"
        for name in written
    ]
    size = first_tensor(example).shape[0]
    shapes = [tensor.shape for tensor in output_tensors(together)]
    if any(shapes) and (size,) not in [shape[:1] for shape in shapes]:
        problems.append(
            f"the output's first dimension is {tuple(next(filter(None, shapes)))[:1]} for {size} examples; "
            "it must be the number of examples (is a batch size written into the network?)"
        )
    elif not (changed or written) and not _equal_nests(together, again, exact=False):
        problems.append(_UNSTEADY)
    elif mixed:
        problems.append(
            "the output of one example depends on the other examples of its batch; find the layer that mixes them "
            "(normalisation, attention or a mean over the first dimension) and let it treat each example separately"
        )
    return problems


def _mixes(network: nn.Module, example: Any) -> bool:
    """Whether the first example's output changes with the other examples, or with their number."""
    others = map_tensors(lambda t: t[:1].expand_as(t).clone(), example)
    size = first_tensor(example).shape[0]
    outputs = [[_seeded_call(network, x, seed) for seed in range(_SEEDS)] for x in (example, others)]
    place = _rows_at(outputs[0][0], size)
    if place is None:  # one number for the batch; in training, each example computes its own
        return False
    if not all(_equal_rows(a, b, place) for a, b in zip(*outputs, strict=True)):
        return True
    with preserve_state(network):
        if draws(network, lambda: outputs_of(network, example)):
            network.eval()  # random draws in training depend on the number of examples
            if draws(network, lambda: outputs_of(network, example)):
                return False
        together, alone = (_seeded_call(network, x) for x in (example, map_tensors(lambda t: t[:1], example)))
    return not _equal_rows(together, alone, place)


def _rows_at(outputs: Any, size: int) -> int | None:
    """The place of the first output tensor with one row per example."""
    return next((at for at, tensor in enumerate(output_tensors(outputs)) if tensor.shape[:1] == (size,)), None)


def _equal_rows(left: Any, right: Any, place: int) -> bool:
    """Whether the first rows of one tensor are equal in two outputs."""
    return _close(*(output_tensors(outputs)[place][:1] for outputs in (left, right)))


def _seeded_call(network: nn.Module, example: Any, seed: int = 0, *, keep_buffers: bool = False) -> Any:
    """The outputs under a seed; the state of the network is restored, apart from buffers if ``keep_buffers``."""
    with preserve_state(network, keep_buffers=keep_buffers):
        seed_generators(network, seed)
        return outputs_of(network, map_tensors(torch.clone, example))  # some networks write to their inputs


def _equal_nests(left: Any, right: Any, *, exact: bool) -> bool:
    """Whether the first tensors of two outputs are equal."""
    pairs = list(zip(output_tensors(left), output_tensors(right), strict=False))[:1]
    return all(a.shape == b.shape and (torch.equal(a, b) if exact else _close(a, b)) for a, b in pairs)


def _close(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.allclose(left, right, rtol=1e-3, atol=1e-4, equal_nan=True)
