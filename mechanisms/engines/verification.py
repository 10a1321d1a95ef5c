"""Verifies an engine on a network: its sums against those of the one-example loop, parameter by parameter."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mechanisms.clipping import ClipMechanism
from mechanisms.engines.base import ONE_AT_A_TIME, ClippedSum, Engine
from mechanisms.engines.batch import Batch, first_tensor, map_tensors, outputs_of
from mechanisms.engines.bookkeeping.layers.cancellation import exact_norms
from mechanisms.engines.isolation.guards import seed_as_pass
from mechanisms.engines.loop import LoopEngine
from mechanisms.engines.losses import LossFunction
from mechanisms.engines.parameters import hooked_parameter, trainable_parameters
from mechanisms.engines.precision import full_float32
from mechanisms.engines.probing import draws, perturbed_weights, preserve_state, seed_generators
from mechanisms.engines.slices import slices
from mechanisms.units import ClippedUnit

#: Largest accepted difference, relative to the largest entry of the parameter (deep float32 networks round a lot).
TOLERANCE = 1e-3

#: The same in double precision, where any difference comes from the engine.
TOLERANCE_IN_DOUBLE = 1e-7

#: Size, in roundings, and number of the random perturbations that show how strongly a network amplifies rounding.
ROUNDINGS, DRAWS = 4, 4

#: How far an engine may be from double precision, relative to the loop: equally precise computations differ this much.
SPREAD = 4

#: Largest difference attributed to rounding, for any network.
MOST_ROUNDING = 0.1


class _ByParameter(ClipMechanism):
    """A block per parameter, and different factors for different examples."""

    def blocks(self, names: Sequence[str]) -> list[int]:
        return list(range(len(names)))

    def factors(self, norms: Tensor) -> Tensor:
        return 1.0 / (1.0 + norms)


def disagreement(engine: type[Engine], network: nn.Module, loss_fn: LossFunction, example: Batch) -> str | None:
    """Describe how an engine and the one-example loop differ on ``example``; None if they agree.

    Networks with random layers are compared in evaluation mode, where neither side draws; the mode is restored.
    Networks that draw even then are compared example by example, with equal seeds. Both sides compute in full float32,
    even if training will not: rounding must neither look like an error nor hide one.
    """
    hooked = hooked_parameter(network)
    if hooked is not None:
        return f"parameter {hooked!r} has a gradient hook, which only autograd calls"
    probe = _two_examples(example)
    unit, clip = ClippedUnit(1, probe.size), _ByParameter()
    clip.start(torch.finfo(torch.float32).max / 2.0)
    # Terms that cancel have larger norms in some engines, on purpose; here, gradients are compared.
    with ONE_AT_A_TIME, preserve_state(network, loss_fn), _plain_attention(), full_float32(), exact_norms():
        if _is_random(network, probe):
            engine(unit).clipped_sum(network, loss_fn, probe, clip)  # it must also run in training mode
            network.eval()
            if _is_random(network, probe):
                return _random_difference(engine(unit), network, loss_fn, probe, clip)
        problem = _difference(engine(unit), network, loss_fn, probe, clip)
        if problem is None:
            # Perturbed, since a layer that feeds into zero weights has no gradient yet; reversed, since rows could be
            # in the right order by chance.
            turned = probe.select(torch.arange(probe.size - 1, -1, -1, device=first_tensor(probe.x).device))
            with perturbed_weights(network):
                if _runs(network, turned):
                    problem = _difference(engine(unit), network, loss_fn, turned, clip)
    return problem


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Disable the fused attention of evaluation mode, which has no gradient."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _runs(network: nn.Module, probe: Batch) -> bool:
    """Whether the network accepts the perturbed weights: some weights have a restricted domain."""
    try:
        outputs_of(network, probe.rows)
    except Exception:
        return False
    return True


def _difference(
    engine: Engine, network: nn.Module, loss_fn: LossFunction, probe: Batch, clip: ClipMechanism
) -> str | None:
    parameters, unit = list(trainable_parameters(network).items()), engine.unit
    # Copies: a network may write to its inputs.
    found = engine.clipped_sum(network, loss_fn, _copy(probe), clip)
    expected = LoopEngine(unit).clipped_sum(network, loss_fn, probe, clip)
    problem = _compare(parameters, expected, found)
    if problem is not None and _is_rounding(engine, network, loss_fn, probe, clip, found, expected):
        return None
    if problem is None or engine.witness is None:
        return problem
    # A library kernel may be wrong for a batch of one (instance norm is, on the CPU, if its gradient is transposed);
    # two engines that agree outvote it.
    try:
        second = engine.witness(unit).clipped_sum(network, loss_fn, _copy(probe), clip)
    except Exception:  # the witness does not support this network
        return problem
    return problem if _compare(parameters, second, found) else None


def _random_difference(
    engine: Engine, network: nn.Module, loss_fn: LossFunction, probe: Batch, clip: ClipMechanism
) -> str | None:
    parameters, loop = list(trainable_parameters(network).items()), LoopEngine(engine.unit)
    loop.boundary.isolation = "trust"  # otherwise it seeds generators for each example
    for row in range(probe.size):
        found = []
        for way in (loop, engine):
            seed_generators(network, row)
            if way is loop:
                seed_as_pass(first_tensor(probe.x).device)
            found.append(way.clipped_sum(network, loss_fn, probe.select(slice(row, row + 1)), clip))
        problem = _compare(parameters, *found)
        if problem is not None:
            return f"it draws random numbers even in evaluation mode, and with equal seeds {problem}"
    return None


def _is_rounding(
    engine: Engine,
    network: nn.Module,
    loss_fn: LossFunction,
    probe: Batch,
    clip: ClipMechanism,
    found: ClippedSum,
    expected: ClippedSum,
) -> bool:
    """Whether an engine differs from the loop only by rounding, which a stack of norm layers can amplify.

    In double precision, the two must agree. The engine's result in single precision may then differ from that by as
    much as the loop itself does in double precision after the last bits of inputs and weights were perturbed, or by
    ``SPREAD`` times the error of the loop in single precision, where each layer rounds.

    Args:
        engine: The engine.
        network: The network in its own precision; copies are made in double precision.
        loss_fn: The loss.
        probe: The examples.
        clip: Gives different factors to different examples.
        found: The engine's sum in the network's own precision.
        expected: The loop's sum in the network's own precision.
    """
    if any(value.dtype != torch.float32 for value in trainable_parameters(network).values()):
        return False
    loop, draws = LoopEngine(engine.unit), torch.Generator("cpu").manual_seed(0)
    try:
        wide, loss = copy.deepcopy(network).double(), copy.deepcopy(loss_fn)
        loss = loss.double() if isinstance(loss, nn.Module) else loss
        batch = probe.with_examples(*(map_tensors(_in_double, value) for value in (probe.x, probe.y)))
        parameters = list(trainable_parameters(wide).items())
        exact = loop.clipped_sum(wide, loss, batch, clip)
        in_double = engine.clipped_sum(wide, loss, _copy(batch), clip)
        if _largest_difference(parameters, exact, in_double) > TOLERANCE_IN_DOUBLE:
            return False
        values = [value.detach().clone() for _, value in parameters]
        of_rounding = SPREAD * _largest_difference(parameters, exact, expected)
        for _ in range(DRAWS):
            for (_, parameter), value in zip(parameters, values, strict=True):
                parameter.data = _rounded(value, draws)
            moved = batch.with_examples(map_tensors(lambda value: _rounded(value, draws), batch.x), batch.y)
            off = _largest_difference(parameters, exact, loop.clipped_sum(wide, loss, moved, clip))
            of_rounding = max(of_rounding, off)
    except Exception:  # the network cannot be copied or run in double precision
        return False
    return _largest_difference(parameters, exact, found) <= max(TOLERANCE, min(of_rounding, MOST_ROUNDING))


def _rounded(value: Tensor, draws: torch.Generator) -> Tensor:
    """Change the last few bits of single precision at random."""
    if not value.is_floating_point():
        return value
    noise = torch.randn(value.shape, generator=draws, dtype=value.dtype, device="cpu").to(value.device)
    return value * (1.0 + ROUNDINGS * torch.finfo(torch.float32).eps * noise)


def _largest_difference(
    parameters: Sequence[tuple[str, nn.Parameter]], expected: ClippedSum, found: ClippedSum
) -> float:
    return max((difference for _, _, difference in _differences(parameters, expected, found)), default=0.0)


def _copy(batch: Batch) -> Batch:
    return batch.with_examples(map_tensors(Tensor.clone, batch.x), map_tensors(Tensor.clone, batch.y))


def _in_double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _compare(parameters: Sequence[tuple[str, nn.Parameter]], expected: ClippedSum, found: ClippedSum) -> str | None:
    for name, kind, difference in _differences(parameters, expected, found):
        if difference > TOLERANCE:
            layer = name.rpartition(".")[0] or name
            return (
                f"layer {layer!r} does not give the gradients of the one-example loop "
                f"({kind} of {name!r} differ by {difference:.1e} relative)"
            )
    return None


def _differences(
    parameters: Sequence[tuple[str, nn.Parameter]], expected: ClippedSum, found: ClippedSum
) -> Iterator[tuple[str, str, float]]:
    """For each parameter: its name, what is compared, and the largest difference relative to the largest entry."""
    sums = zip(
        *(flat.split([value.numel() for _, value in parameters]) for flat in (expected.flat_grad, found.flat_grad)),
        strict=True,
    )
    overall = _largest(expected.norms)
    for index, ((name, _), (a, b)) in enumerate(zip(parameters, sums, strict=True)):
        for kind, left, right in (("norms", expected.norms[:, index], found.norms[:, index]), ("sum", a, b)):
            scale = max(_largest(left), 1e-3 * overall, torch.finfo(torch.float32).tiny)
            yield name, kind, _largest(left, right) / scale


def _largest(values: Tensor, others: Tensor | None = None) -> float:
    """The largest absolute entry, or the largest absolute difference; NaN counts as zero."""
    if not values.numel():
        return 0.0
    if others is None:
        return max(float(torch.nan_to_num(part).abs().max()) for (part,) in slices(values))
    pairs = slices(values, others)
    return max(float((torch.nan_to_num(one) - torch.nan_to_num(other)).abs().max()) for one, other in pairs)


def _two_examples(example: Batch) -> Batch:
    """At least two examples; a single one is repeated with its floating-point inputs halved."""
    if example.size > 1:
        return example.with_examples(example.x, example.y)

    def doubled(value: Tensor) -> Tensor:
        return torch.cat([value, value / 2 if value.is_floating_point() else value])

    return example.with_examples(map_tensors(doubled, example.x), map_tensors(lambda y: torch.cat([y, y]), example.y))


def _is_random(network: nn.Module, probe: Batch) -> bool:
    return draws(network, lambda: outputs_of(network, probe.rows))
