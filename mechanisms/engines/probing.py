"""Context managers for trial passes that leave no trace: preserved state, temporary modes, perturbed weights."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import is_

import numpy as np
import torch
from torch import Tensor, nn

from mechanisms.engines.parameters import trainable_parameters
from mechanisms.engines.slices import slices
from mechanisms.engines.state.generators import each_once, global_generators
from mechanisms.engines.state.holders import same_values
from mechanisms.engines.state.python_state import PythonState

#: Size of the perturbation of parameters, relative to their mean size.
SHAKE = 0.1

#: Number of random numbers for a perturbation; larger parameters repeat them. A prime, so that no two rows are equal.
SHAKES = 1_000_003


#: Number of recordings kept: of a network in training and in evaluation mode, with and without a loss.
_MOST_RECORDINGS = 4

_recordings: ContextVar[list[tuple[tuple[object, ...], PythonState]] | None] = ContextVar("recordings", default=None)


@contextmanager
def shared_recordings() -> Iterator[None]:
    """Let trial passes inside reuse each other's recordings of the Python state while it has not changed.

    Recording a state takes longer than a pass of a small network; comparing it does not.
    """
    token = _recordings.set([])
    try:
        yield
    finally:
        _recordings.reset(token)


def _recorded(*roots: object) -> PythonState:
    """The current Python state, from a recording if one is up to date."""
    known = _recordings.get()
    if known is None:
        return PythonState(*roots, by_value=True)
    for of, state in known:
        if len(of) == len(roots) and all(map(is_, of, roots)) and state.is_current():
            return state
    state = PythonState(*roots, by_value=True)
    if state.complete:
        known.insert(0, (roots, state))
        del known[_MOST_RECORDINGS:]
    return state


@contextmanager
def preserve_state(network: nn.Module, *others: object, keep_buffers: bool = False) -> Iterator[None]:
    """Restore ``network`` afterwards, whatever happens inside: modes, buffers, random state and Python state.

    A buffer that did not change is not written to, so that its version counter stays the same.

    Args:
        network: The network.
        others: Objects whose Python state is restored too, such as a loss.
        keep_buffers: Leave the buffers as they are afterwards.
    """
    modes = [(module, module.training) for module in network.modules()]
    buffers = [] if keep_buffers else [(value, value.clone(), value._version) for value in network.buffers()]
    state = _recorded(network, *others)
    generators = each_once([*global_generators()[1:], *state.generators])
    drawn = [kind.state(generator) for generator, kind in generators]
    try:
        with torch.random.fork_rng(devices=_gpus(network)):
            yield
    finally:
        state.restore()
        for (generator, kind), drawn_before in zip(generators, drawn, strict=True):
            kind.restore(generator, drawn_before)
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for value, before, version in buffers:
                if value._version != version or not same_values(value, before):
                    value.copy_(before)


def seed_generators(network: nn.Module, seed: int) -> None:
    """Seed the generators of NumPy and Python, and torch's for the CPU and the GPUs of ``network``.

    Example:
        >>> with preserve_state(nn.Linear(1, 1)):
        ...     seed_generators(nn.Linear(1, 1), 3)
        ...     torch.initial_seed()
        3
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    for device in _gpus(network):
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def draws(network: nn.Module, call: Callable[[], object]) -> bool:
    """Whether ``call`` draws random numbers from a generator of torch, NumPy or Python, whatever their effect.

    Example:
        >>> draws(nn.Linear(1, 1), lambda: torch.rand(1)), draws(nn.Linear(1, 1), lambda: torch.ones(1))
        (True, False)
    """
    before = _generator_states(network)
    call()
    return before != _generator_states(network)


def _generator_states(network: nn.Module) -> list[object]:
    on_gpus = [torch.cuda.get_rng_state(device) for device in _gpus(network)]
    of_torch = [state.numpy().tobytes() for state in (torch.get_rng_state(), *on_gpus)]
    name, keys, *rest = np.random.get_state()
    return [*of_torch, name, np.asarray(keys).tobytes(), rest, random.getstate()]


def _gpus(network: nn.Module) -> list[torch.device]:
    return list(dict.fromkeys(value.device for value in network.parameters() if value.device.type == "cuda"))


@contextmanager
def without_dropout(network: nn.Module) -> Iterator[None]:
    """Training mode inside, but without dropout: neither that of dropout layers nor that between recurrent layers."""
    modes = {module: module.training for module in network.modules()}
    between = {module: module.dropout for module in network.modules() if isinstance(module, nn.RNNBase)}
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    for module in between:
        module.dropout = 0.0
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, share in between.items():
            module.dropout = share


def _mean_size(value: Tensor) -> float:
    total = sum(float(part.float().abs().sum()) for (part,) in slices(value.reshape(-1)))
    return total / max(1, value.numel())


@contextmanager
def perturbed_weights(network: nn.Module) -> Iterator[None]:
    """Perturb all trainable parameters slightly inside, so that none is zero; restore their values afterwards."""
    values = [(parameter, parameter.data) for parameter in trainable_parameters(network).values()]
    draws = torch.Generator("cpu").manual_seed(0)
    try:
        for parameter, value in values:
            if not value.numel():
                continue
            size = _mean_size(value) or 1.0 / math.sqrt(max(value.shape[-1:], default=1))
            count = min(value.numel(), SHAKES)
            noise = torch.randn(count, generator=draws, dtype=torch.float32, device="cpu").to(value)
            parameter.data = value.clone(memory_format=torch.contiguous_format)
            for part in parameter.data.view(-1).split(SHAKES):
                part.add_(noise[: part.numel()], alpha=SHAKE * size)
        yield
    finally:
        for parameter, value in values:
            parameter.data = value


@contextmanager
def mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """All layers are in training, or in evaluation, mode inside.

    Example:
        >>> layer = nn.Dropout().eval()
        >>> with mode(layer, training=True):
        ...     layer.training
        True
        >>> layer.training
        False
    """
    modes = {module: module.training for module in network.modules()}
    network.train(training)
    try:
        yield
    finally:
        for module, before in modes.items():
            module.training = before


@contextmanager
def inference(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside."""
    with mode(network, training=False), torch.no_grad():
        yield
