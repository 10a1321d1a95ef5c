"""The state of an optimizer as tensors and JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from monitors.errors import CheckpointError

PREFIX = "optimizer."


def pack_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the rest as JSON values.

    Raises:
        CheckpointError: The state holds a value that is neither; it is named.
    """
    tensors: dict[str, Tensor] = {}
    state = _pack(optimizer.state_dict(), PREFIX + "state", tensors)
    return tensors, {"class": type(optimizer).__name__, "shapes": _shapes(optimizer), "state": state}


def unpack_optimizer(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The ``state_dict`` that ``pack_optimizer`` took apart."""
    state: dict[str, Any] = _unpack(values["state"], tensors)
    return state


def check_optimizer(optimizer: Optimizer, values: Mapping[str, Any]) -> None:
    """Refuse a state that was saved from another kind of optimizer or for other parameters.

    Raises:
        CheckpointError: Says what differs.
    """
    found, stated = type(optimizer).__name__, values["class"]
    if found != stated:
        raise CheckpointError(f"the checkpoint holds the state of the optimizer {stated}, the model uses {found}")
    if _shapes(optimizer) != values["shapes"]:
        raise CheckpointError(
            f"the checkpoint's optimizer moves parameters of shapes {values['shapes']}, "
            f"the model's {_shapes(optimizer)}"
        )


def _shapes(optimizer: Optimizer) -> list[list[list[int]]]:
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"mapping": [[key, _pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(f"the optimizer's state holds {name} of type {type(value).__name__}, which cannot be saved")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["tuple"])
    return {key: _unpack(item, tensors) for key, item in value["mapping"]}
