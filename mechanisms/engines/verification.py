"""Before an engine is trusted with a network: its numbers against the one-example loop's, parameter by parameter."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mechanisms.clipping import ClipMechanism
from mechanisms.engines.base import ClippedSum, Engine
from mechanisms.engines.batch import Batch, first_tensor, map_tensors, outputs_of
from mechanisms.engines.isolation.guards import seed_as_pass
from mechanisms.engines.loop import LoopEngine
from mechanisms.engines.losses import LossFunction
from mechanisms.engines.parameters import hooked_parameter, trainable_parameters
from mechanisms.engines.precision import full_float32
from mechanisms.engines.probing import draws, perturbed_weights, preserve_state, seed_generators
from mechanisms.engines.slices import slices
from mechanisms.units import ClippedUnit

#: Largest accepted difference, relative to the largest entry of the parameter (float32 networks of many layers round).
TOLERANCE = 1e-3

#: The same in double precision, where nothing is left but what an engine does differently.
TOLERANCE_IN_DOUBLE = 1e-7

#: How far inputs and weights are moved to see what rounding does to a network, in units of rounding, and how often.
ROUNDINGS, DRAWS = 4, 4

#: How far an engine may be from double precision, in units of what the loop is: roundings of one size differ so much.
SPREAD = 4

#: Largest difference that is put down to rounding, whatever rounding does to a network.
MOST_ROUNDING = 0.1


class _ByParameter(ClipMechanism):
    """Norms of each parameter by itself, and factors that tell the examples apart."""

    def blocks(self, names: Sequence[str]) -> list[int]:
        return list(range(len(names)))

    def factors(self, norms: Tensor) -> Tensor:
        return 1.0 / (1.0 + norms)


def disagreement(engine: type[Engine], network: nn.Module, loss_fn: LossFunction, example: Batch) -> str | None:
    """What differs between an engine and the one-example loop on ``example``, in words; None when nothing does.

    Random layers are compared in evaluation mode, where both draw nothing; the mode is put back. Networks that draw
    even then are compared example by example, with equal seeds. Both sides compute in full float32, also where training
    will not: rounding must not be taken for a fault, nor hide one.
    """
    hooked = hooked_parameter(network)
    if hooked is not None:
        return f"parameter {hooked!r} has a hook on its gradient, which autograd alone calls"
    probe = _two_examples(example)
    unit, clip = ClippedUnit(1, probe.size), _ByParameter()
    clip.start(torch.finfo(torch.float32).max / 2.0)
    with preserve_state(network, loss_fn), _plain_attention(), full_float32():
        if _is_random(network, probe):
            engine(unit).clipped_sum(network, loss_fn, probe, clip)  # it must also run as it will be trained
            network.eval()
            if _is_random(network, probe):
                return _random_difference(engine(unit), network, loss_fn, probe, clip)
        problem = _difference(engine(unit), network, loss_fn, probe, clip)
        if problem is None:
            # A layer behind one whose weights are zero has no gradient yet, and rows may be in their order by chance.
            turned = probe.select(torch.arange(probe.size - 1, -1, -1, device=first_tensor(probe.x).device))
            with perturbed_weights(network):
                if _runs(network, turned):
                    problem = _difference(engine(unit), network, loss_fn, turned, clip)
    return problem


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without the fused attention of evaluation mode, which has no gradient."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _runs(network: nn.Module, probe: Batch) -> bool:
    """Whether moved weights are still what the network can take: some have a domain of their own."""
    try:
        outputs_of(network, probe.x)
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
    # A library kernel may be wrong for a batch of one (instance norm is, on the CPU, when its gradient comes
    # transposed); two other ways that agree outvote it.
    try:
        second = engine.witness(unit).clipped_sum(network, loss_fn, _copy(probe), clip)
    except Exception:  # it does not take this network
        return problem
    return problem if _compare(parameters, second, found) else None


def _random_difference(
    engine: Engine, network: nn.Module, loss_fn: LossFunction, probe: Batch, clip: ClipMechanism
) -> str | None:
    parameters, loop = list(trainable_parameters(network).items()), LoopEngine(engine.unit)
    loop.boundary.isolation = "trust"  # else it seeds generators for each example
    for row in range(probe.size):
        found = []
        for way in (loop, engine):
            seed_generators(network, row)
            if way is loop:
                seed_as_pass(first_tensor(probe.x).device)
            found.append(way.clipped_sum(network, loss_fn, probe.select(slice(row, row + 1)), clip))
        problem = _compare(parameters, *found)
        if problem is not None:
            return f"it draws at random even in evaluation mode, and with equal seeds {problem}"
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
    """Whether an engine differs from the loop by rounding alone, which many norm layers and activations blow up.

    In double precision the two must be one and the same. What the engine found in single precision must be no farther
    from that than the loop itself is, in double precision, once the last bits of inputs and weights are others, or
    than ``SPREAD`` times what the loop is off in single precision, where every layer rounds.

    Args:
        engine: The engine.
        network: In its own precision; copies are made in double precision.
        loss_fn: The loss.
        probe: The examples.
        clip: Tells the examples apart.
        found: The engine's sum in the network's own precision.
        expected: The loop's.
    """
    if any(value.dtype != torch.float32 for value in trainable_parameters(network).values()):
        return False
    loop, draws = LoopEngine(engine.unit), torch.Generator("cpu").manual_seed(0)
    try:
        wide, loss = copy.deepcopy(network).double(), copy.deepcopy(loss_fn)
        loss = loss.double() if isinstance(loss, nn.Module) else loss
        batch = Batch(*(map_tensors(_in_double, value) for value in (probe.x, probe.y)))
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
            moved = Batch(map_tensors(lambda value: _rounded(value, draws), batch.x), batch.y)
            off = _largest_difference(parameters, exact, loop.clipped_sum(wide, loss, moved, clip))
            of_rounding = max(of_rounding, off)
    except Exception:  # it cannot be copied, or does not run in double precision
        return False
    return _largest_difference(parameters, exact, found) <= max(TOLERANCE, min(of_rounding, MOST_ROUNDING))


def _rounded(value: Tensor, draws: torch.Generator) -> Tensor:
    """A few last bits of single precision are others."""
    if not value.is_floating_point():
        return value
    noise = torch.randn(value.shape, generator=draws, dtype=value.dtype, device="cpu").to(value.device)
    return value * (1.0 + ROUNDINGS * torch.finfo(torch.float32).eps * noise)


def _largest_difference(
    parameters: Sequence[tuple[str, nn.Parameter]], expected: ClippedSum, found: ClippedSum
) -> float:
    return max((difference for _, _, difference in _differences(parameters, expected, found)), default=0.0)


def _copy(batch: Batch) -> Batch:
    return Batch(map_tensors(Tensor.clone, batch.x), map_tensors(Tensor.clone, batch.y))


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
    """Each parameter's name, what is compared, and the largest difference relative to the largest entry."""
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
    """The largest entry by size, or the largest difference; what is not a number counts as zero."""
    if not values.numel():
        return 0.0
    if others is None:
        return max(float(torch.nan_to_num(part).abs().max()) for (part,) in slices(values))
    pairs = slices(values, others)
    return max(float((torch.nan_to_num(one) - torch.nan_to_num(other)).abs().max()) for one, other in pairs)


def _two_examples(example: Batch) -> Batch:
    """At least two examples that differ where they can: a copied one has its floating inputs halved."""
    if example.size > 1:
        return Batch(example.x, example.y)

    def doubled(value: Tensor) -> Tensor:
        return torch.cat([value, value / 2 if value.is_floating_point() else value])

    return Batch(map_tensors(doubled, example.x), map_tensors(lambda y: torch.cat([y, y]), example.y))


def _is_random(network: nn.Module, probe: Batch) -> bool:
    return draws(network, lambda: outputs_of(network, probe.x))
