"""The state of an optimizer as tensors and JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dpmodel.saving.nest import pack_nest, unpack_nest
from monitors.errors import CheckpointError

PREFIX = "optimizer."


def pack_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and everything else as JSON values.

    Raises:
        CheckpointError: The state holds a value that is neither; it is named.
    """
    tensors: dict[str, Tensor] = {}
    state = pack_nest(optimizer.state_dict(), PREFIX + "state", tensors, "the optimizer's state")
    return tensors, {"class": type(optimizer).__name__, "shapes": _shapes(optimizer), "state": state}


def unpack_optimizer(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The ``state_dict`` that ``pack_optimizer`` split."""
    state: dict[str, Any] = unpack_nest(values["state"], tensors)
    return state


def check_optimizer(optimizer: Optimizer, values: Mapping[str, Any]) -> None:
    """Refuse a state that was saved from a different optimizer class or for other parameters.

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
