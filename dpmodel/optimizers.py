"""Optimizers and learning-rate schedulers by name."""

from __future__ import annotations

import copy
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LRScheduler

from monitors import checks
from monitors.arguments import accepted_names, check_arguments
from monitors.errors import ConfigError
from monitors.registry import Registry

OPTIMIZERS: Registry[Callable[..., optim.Optimizer]] = Registry("optimizer")

# Optimizers that do not work with a private step, and why.
REFUSED_OPTIMIZERS: Mapping[str, str] = {
    "LBFGS": "it evaluates the loss several times per step, and each evaluation would be a separate release; use SGD, "
    "Momentum or Adam",
    "SparseAdam": "it needs sparse gradients, but a noisy gradient is dense; use Adam",
}

# Schedulers that cannot be built from a name and numbers, and why.
REFUSED_SCHEDULERS: Mapping[str, str] = {
    "ReduceLROnPlateau": "it needs a measured value at every step",
    "SequentialLR": "it is made of scheduler objects; build it in Python and pass the object",
    "ChainedScheduler": "it is made of scheduler objects; build it in Python and pass the object",
    "LambdaLR": "it needs a function; build it in Python and pass the object",
    "MultiplicativeLR": "it needs a function; build it in Python and pass the object",
}

# For each scheduler, the argument that holds the length of the training.
LENGTH_ARGUMENT: Mapping[str, str] = {
    "LinearLR": "total_iters",
    "PolynomialLR": "total_iters",
    "ConstantLR": "total_iters",
    "CosineAnnealingLR": "T_max",
    "CosineAnnealingWarmRestarts": "T_0",
    "OneCycleLR": "total_steps",
}


# Optimizers with a fused form, which updates all parameters in one pass: up to four times as fast, same numbers.
FUSED_OPTIMIZERS = ("SGD", "Adam", "AdamW")

#: Arguments that choose an implementation; if the user gives one, the fused form is not chosen automatically.
WAYS_TO_RUN = ("fused", "foreach", "differentiable", "capturable")

#: The names of the learning rate in torch and in MindSpore.
_RATE_NAMES = ("lr", "learning_rate")

#: A schedule that falls to 0 may end this far below it.
ROUNDING = 1e-9

#: Types of device on which the fused form runs.
_FUSED_DEVICES = ("cpu", "cuda")


@OPTIMIZERS.register("Momentum")
class Momentum(optim.SGD):
    """SGD with momentum, under MindSpore's name and argument names.

    Args:
        params: Parameters or parameter groups, such as ``network.parameters()``.
        learning_rate: Step size, positive.
        momentum: In [0, 1).
        weight_decay: L2 penalty.
        nesterov: Use Nesterov momentum.
        dampening: Dampening of the momentum; 0 in MindSpore.

    Example:
        >>> import torch
        >>> Momentum([torch.nn.Parameter(torch.zeros(2))], learning_rate=0.1).defaults["momentum"]
        0.9
    """

    def __init__(
        self,
        params: Iterable[Any],
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        dampening: float = 0.0,
    ) -> None:
        checks.positive(learning_rate=learning_rate)
        checks.unit_interval(momentum=momentum)
        if momentum == 1:
            raise ValueError("momentum must be below 1, got 1, with which the steps would add up without bound")
        held = _listed(params)
        fused = True if can_fuse(held) else None
        super().__init__(held, learning_rate, momentum, dampening, weight_decay, nesterov, fused=fused)


def can_fuse(parameters: Iterable[Any]) -> bool:
    """Whether a fused optimizer supports these parameters or groups: floating point, on a CPU or CUDA device."""
    found: list[Any] = []
    for entry in parameters:
        found += list(entry["params"]) if isinstance(entry, dict) else [entry]
    tensors = [entry[1] if isinstance(entry, tuple) else entry for entry in found]
    return bool(tensors) and all(
        isinstance(value, Tensor) and value.is_floating_point() and value.device.type in _FUSED_DEVICES
        for value in tensors
    )


def copied(optimizer: optim.Optimizer, part: Callable[[Tensor], Tensor] = lambda value: value) -> optim.Optimizer:
    """A copy of ``optimizer`` without its state, on copies of ``part`` of each parameter, with zero gradients."""
    memo: dict[int, Any] = {id(optimizer.state): defaultdict(dict)}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            own = memo[id(parameter)] = nn.Parameter(part(parameter.detach()).clone(), parameter.requires_grad)
            own.grad = torch.zeros_like(own) if parameter.requires_grad else None
    twin = copy.deepcopy(optimizer, memo)
    if isinstance(twin, optim.Adagrad):  # its step expected the constructor's buffers until PyTorch 2.10
        groups = [{**group, "params": list(group["params"])} for group in twin.param_groups]
        twin.state.update(optim.Adagrad(groups, **twin.defaults).state)
    return twin


def stepped_copy(optimizer: optim.Optimizer) -> optim.Optimizer:
    """``copied``, after a step."""
    stepped = copied(optimizer)
    type(optimizer).step(stepped)
    return stepped


def optimizer_names() -> tuple[str, ...]:
    """All names that ``build_optimizer`` accepts, in alphabetical order."""
    return tuple(sorted({*OPTIMIZERS.names(), *_torch_optimizers()}))


def build_optimizer(name: str, parameters: Iterable[Any], **args: Any) -> optim.Optimizer:
    """Build an optimizer by name, in its fused form if it has one and the arguments do not choose otherwise.

    Args:
        name: ``"SGD"``, ``"Momentum"`` (SGD with momentum 0.9), ``"Adam"``, any other class of ``torch.optim``, or a
            registered one.
        parameters: Parameters or parameter groups.
        **args: Arguments of the class. ``learning_rate`` and ``lr`` are synonyms.

    Raises:
        ValueError: Unknown name or argument (the nearest is suggested), a value out of range, or an optimizer that
            does not work with noisy gradients.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> build_optimizer("Momentum", [weight], lr=0.1).defaults["momentum"]
        0.9
        >>> build_optimizer("Adan", [weight], lr=0.1)
        Traceback (most recent call last):
            ...
        ValueError: unknown optimizer 'Adan'; did you mean 'Adam'? Known: ...
    """
    builder, options = check_optimizer(name, args)
    held = _listed(parameters)
    if name in FUSED_OPTIMIZERS and not options.keys() & set(WAYS_TO_RUN) and can_fuse(held):
        options["fused"] = True
    try:
        built: optim.Optimizer = builder(held, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"optimizer {name!r} cannot be built from {args}: {error}") from error
    require_usable(built)
    return built


def check_optimizer(name: str, args: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The class of an optimizer and the arguments to build it with.

    Raises:
        ValueError: Unknown name or argument, or an optimizer that does not work with noisy gradients.
    """
    _refuse(name)
    builder = OPTIMIZERS.get(name) if name in OPTIMIZERS else _torch_optimizers().get(name)
    if builder is None:
        names = optimizer_names()
        hint = checks.nearest_hint(name, names) or "."
        raise ValueError(f"unknown optimizer {name!r}{hint} Known: {', '.join(names)}")
    options = _one_learning_rate(builder, args, name)
    _check_options(builder, options, name)
    return builder, options


def require_usable(optimizer: optim.Optimizer) -> None:
    """Refuse an optimizer that does not work with a private step, or whose settings would break the weights.

    A private step provides a single noisy, dense gradient.

    Raises:
        ValueError: The optimizer is refused; the message says why.

    Example:
        >>> import torch
        >>> require_usable(optim.LBFGS([torch.nn.Parameter(torch.zeros(2))]))
        Traceback (most recent call last):
            ...
        ValueError: optimizer 'LBFGS' cannot train with differential privacy: it evaluates the loss several times ...
    """
    for kind in type(optimizer).__mro__:
        _refuse(kind.__name__)
    require_finite(optimizer)
    for group in optimizer.param_groups:
        momentum = group.get("momentum")
        if isinstance(momentum, (int, float)) and momentum >= 1:
            raise ValueError(
                f"optimizer {type(optimizer).__name__!r}: momentum must be below 1, got {momentum}, with which the "
                "steps would add up without bound"
            )


def require_finite(optimizer: optim.Optimizer) -> None:
    """Refuse an optimizer with a setting that is not finite, or a negative learning rate, in any group.

    Raises:
        ConfigError: Names the setting and its value.
    """
    for group in optimizer.param_groups:
        for key, value in group.items():
            if key != "params" and not _is_finite(value):
                raise ConfigError(f"optimizer {type(optimizer).__name__!r}: {key} must be a finite number, got {value}")
        if group.get("lr", 0.0) < -ROUNDING:
            raise ConfigError(f"optimizer {type(optimizer).__name__!r}: lr must be at least 0, got {group['lr']}")


def scheduler_names() -> tuple[str, ...]:
    """All names that ``build_scheduler`` accepts, in alphabetical order."""
    return tuple(sorted(set(_torch_schedulers()) - set(REFUSED_SCHEDULERS)))


def build_scheduler(
    name: str, optimizer: optim.Optimizer, total_steps: int, steps_per_epoch: int | None = None, /, **args: Any
) -> LRScheduler:
    """Build a learning-rate scheduler by the name of its class in ``torch.optim.lr_scheduler``.

    The first four arguments are positional-only, because some schedulers have arguments with the same names.

    Args:
        name: Such as ``"LinearLR"``, ``"CosineAnnealingLR"``, ``"OneCycleLR"``.
        optimizer: The optimizer whose learning rate is scheduled.
        total_steps: Number of times the scheduler will be stepped in the whole training. If the corresponding argument
            of the class (``total_iters``, ``T_max``, ``total_steps``, ...) is not given, it is set to this.
        steps_per_epoch: Passed on if the class takes it together with ``epochs`` (OneCycleLR).
        **args: Arguments of the class.

    Raises:
        ValueError: Unknown name or argument (the nearest is suggested), a value out of range, or a scheduler that
            cannot be built from a name and numbers.

    Example:
        >>> import torch
        >>> optimizer = build_optimizer("SGD", [torch.nn.Parameter(torch.zeros(2))], lr=4.0)
        >>> build_scheduler("LinearLR", optimizer, 100, start_factor=1.0, end_factor=0.0).total_iters
        100
    """
    checks.positive_int(total_steps=total_steps)
    if name in REFUSED_SCHEDULERS:
        raise ValueError(f"learning-rate scheduler {name!r} cannot be built by name: {REFUSED_SCHEDULERS[name]}")
    known = _torch_schedulers()
    if name not in known:
        hint = checks.nearest_hint(name, scheduler_names()) or "."
        raise ValueError(f"unknown learning-rate scheduler {name!r}{hint} Known: {', '.join(scheduler_names())}")
    options = {**_length_arguments(name, args, total_steps, steps_per_epoch), **args}
    check_arguments(known[name], options, f"learning-rate scheduler {name!r}", provided=["optimizer"])
    try:
        return cast(LRScheduler, known[name](optimizer, **options))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"learning-rate scheduler {name!r} cannot be built from {args}: {error}") from error


def _refuse(name: str) -> None:
    if name in REFUSED_OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} cannot train with differential privacy: {REFUSED_OPTIMIZERS[name]}")


def _is_finite(value: Any) -> bool:
    # torch accepts a learning rate of NaN, because every comparison with NaN is false.
    if isinstance(value, (tuple, list)):
        return all(map(_is_finite, value))
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    return not isinstance(value, float) or math.isfinite(value)


def _listed(parameters: Iterable[Any]) -> list[Any]:
    groups = list(parameters)
    return [{**entry, "params": list(entry["params"])} if isinstance(entry, dict) else entry for entry in groups]


def _length_arguments(
    name: str, args: Mapping[str, Any], total_steps: int, steps_per_epoch: int | None
) -> dict[str, int]:
    length = LENGTH_ARGUMENT.get(name)
    if length is None or length in args:
        return {}
    if "epochs" in args:
        return {} if steps_per_epoch is None or "steps_per_epoch" in args else {"steps_per_epoch": steps_per_epoch}
    return {length: total_steps}


def _one_learning_rate(builder: Callable[..., Any], args: Mapping[str, Any], name: str) -> dict[str, Any]:
    if "lr" in args and "learning_rate" in args:
        raise ValueError(
            f"optimizer {name!r}: lr={args['lr']} and learning_rate={args['learning_rate']} mean the same; give one"
        )
    known = accepted_names(builder) or ()
    own = "learning_rate" if "learning_rate" in known else "lr"
    return {own if key in _RATE_NAMES else key: value for key, value in args.items()}


def _check_options(builder: Callable[..., Any], options: Mapping[str, Any], name: str) -> None:
    try:
        check_arguments(builder, options, f"optimizer {name!r}", provided=["params"])
    except ValueError as error:
        # Both names are accepted, whichever of them the class has.
        said, takes, listing = str(error).rpartition("takes: ")
        names = ["lr (or learning_rate)" if known in _RATE_NAMES else known for known in listing.split(", ")]
        raise ValueError(said + takes + ", ".join(names)) from None
    for key in _RATE_NAMES:
        if isinstance(options.get(key), (str, bool)):
            raise ValueError(f"optimizer {name!r}: {key} must be a number, got {options[key]!r}")


def _torch_optimizers() -> dict[str, Callable[..., optim.Optimizer]]:
    found = _classes(optim, optim.Optimizer)
    return {name: item for name, item in found.items() if name not in REFUSED_OPTIMIZERS}


def _torch_schedulers() -> dict[str, type]:
    return _classes(optim.lr_scheduler, LRScheduler)


def _classes(module: Any, base: type) -> dict[str, Any]:
    found = {name: item for name, item in vars(module).items() if inspect.isclass(item) and not name.startswith("_")}
    return {
        name: item
        for name, item in found.items()
        if issubclass(item, base) and item is not base and name != "LRScheduler"
    }
