"""The saved state of an optimizer, checked against the live one before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor, optim
from torch.optim import Optimizer

from dpmodel.optimizers import ROUNDING, WAYS_TO_RUN, stepped_copy
from monitors import checks
from monitors.errors import CheckpointError


def fitting_state(optimizer: Optimizer, state: Any, path: str) -> dict[str, Any]:
    """``state`` for ``optimizer.load_state_dict``, after every shape, type and option in it was checked.

    Native code trusts the buffers of an optimizer: one of a wrong shape crashes the process. The buffers must be those
    that a copy of the optimizer has after a step. How the optimizer runs (``fused``, ``foreach``, ...) stays as it is.

    Args:
        optimizer: The live optimizer; left as it was.
        state: The saved output of its ``state_dict``.
        path: The file, for messages.

    Raises:
        CheckpointError: The state is not that of such an optimizer; says what differs.
    """
    own = optimizer.state_dict()
    stated = _mapping(state, own, f"{path}: the optimizer's state")
    groups = stated["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(own["param_groups"]):
        raise CheckpointError(f"{path}: the optimizer's state does not have {len(own['param_groups'])} groups")
    loaded = [
        _group(*pair, f"{path}: group {i}") for i, pair in enumerate(zip(own["param_groups"], groups, strict=True))
    ]
    _check_buffers(optimizer, stated["state"], f"{path}: the optimizer's state")
    return {**stated, "param_groups": loaded}


def _mapping(value: Any, like: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != like.keys():
        raise CheckpointError(f"{what} must have the entries {', '.join(map(str, like))}, got {checks.shown(value)}")
    return value


def _group(own: Mapping[str, Any], group: Any, what: str) -> dict[str, Any]:
    if not isinstance(group, dict) or not own.keys() <= group.keys() or group["params"] != own["params"]:
        raise CheckpointError(f"{what} must have the settings {', '.join(own)}, got {checks.shown(group)}")
    for name, value in group.items():
        # Learning-rate schedules add settings of their own, which are numbers.
        like = own.get(name, 0.0)
        if name != "params" and name not in WAYS_TO_RUN and not _alike(like, value):
            raise CheckpointError(f"{what}: {name} is {like!r} here, got {checks.shown(value)}")
    return {**group, **{name: own[name] for name in WAYS_TO_RUN if name in own}}


def _alike(own: Any, value: Any) -> bool:
    """Whether ``value`` can replace a setting: numbers may change, within reason; anything else must be equal."""
    if isinstance(own, Tensor):
        return _same_form(own, value) and bool(value.isfinite().all())
    if isinstance(own, (tuple, list)):
        pairs = zip(own, value, strict=False) if type(own) is type(value) and len(own) == len(value) else [(0, None)]
        return all(_alike(*pair) and (_is_share(pair[1]) or not _is_share(pair[0])) for pair in pairs)
    if isinstance(own, (int, float)) and not isinstance(own, bool):
        # A rate that falls to 0 may end slightly below it.
        return _is_number(value) and (value >= -ROUNDING or own < 0)
    return type(own) is type(value) and bool(own == value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _same_form(own: Tensor, value: Any) -> bool:
    return isinstance(value, Tensor) and (value.shape, value.dtype, value.layout) == (own.shape, own.dtype, own.layout)


def _check_buffers(optimizer: Optimizer, buffers: Any, what: str) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(buffers, dict) or not all(type(key) is int and 0 <= key < len(parameters) for key in buffers):
        raise CheckpointError(f"{what} must be of parameters 0 to {len(parameters) - 1}, got {checks.shown(buffers)}")
    expected: dict[int, dict[str, Any]] = {}
    with suppress(Exception):  # an optimizer of a different package may not be copyable
        expected = stepped_copy(optimizer).state_dict()["state"]
    # Optimizers of other packages may add buffers in later steps.
    exact = type(optimizer).step.__module__.startswith(optim.__name__)
    bare = [key for key, like in expected.items() if like and not buffers.get(key)]
    if exact and bare and any(buffers.values()):  # a fused step takes the buffers of all parameters or of none
        raise CheckpointError(f"{what} has nothing for parameter {bare[0]}, unlike for others")
    for key, found in buffers.items():
        like = expected.get(key, {})
        if not isinstance(found, dict) or (exact and found and found.keys() != like.keys()):
            names = ", ".join(map(str, like)) or "nothing"
            raise CheckpointError(f"{what} of parameter {key} must hold {names}, got {checks.shown(found)}")
        for name, value in found.items():
            if not (_same_kind(like[name], value) if name in like else _possible(value, parameters[key])):
                raise CheckpointError(f"{what} of parameter {key}: {name} does not fit, got {_described(value)}")


def _same_kind(own: Any, value: Any) -> bool:
    if isinstance(own, Tensor):
        return _same_form(own, value) and not value.isnan().any()
    return type(value) is type(own) and (not isinstance(value, (int, float)) or math.isfinite(value))


def _possible(value: Any, parameter: Tensor) -> bool:
    """Whether a buffer of unknown form may belong to ``parameter``: no dimension that the parameter lacks."""
    if isinstance(value, Tensor):
        return value.dim() <= parameter.dim() and {*value.shape} <= {*parameter.shape, 1}
    return value is None or isinstance(value, (bool, str)) or _is_number(value)


def _described(value: Any) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else checks.shown(value)
