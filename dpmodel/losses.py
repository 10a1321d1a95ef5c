"""Loss functions by name."""

from __future__ import annotations

import inspect
from typing import Any, cast

from torch import Tensor, nn

from monitors import checks
from monitors.arguments import check_arguments
from monitors.errors import DataError
from monitors.registry import Registry

LOSSES: Registry[Any] = Registry("loss")
LOSSES.register("cross_entropy")(nn.CrossEntropyLoss)
LOSSES.register("nll")(nn.NLLLoss)
LOSSES.register("mse")(nn.MSELoss)
LOSSES.register("mae")(nn.L1Loss)
LOSSES.register("bce_with_logits")(nn.BCEWithLogitsLoss)


@LOSSES.register("SoftmaxCrossEntropyWithLogits")
class SoftmaxCrossEntropyWithLogits(nn.CrossEntropyLoss):
    """Cross entropy of scores under MindSpore's name.

    Args:
        sparse: True: targets are class indices (N,). False: targets are probabilities or one-hot rows (N, classes).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. MindSpore's default is ``"none"``; its tutorial uses ``"mean"``.

    Raises:
        DataError: The targets do not have the shape that ``sparse`` asks for.

    Example:
        >>> import torch
        >>> loss = SoftmaxCrossEntropyWithLogits(sparse=True)
        >>> round(float(loss(torch.zeros(4, 10), torch.tensor([1, 2, 3, 4]))), 4)
        2.3026
    """

    def __init__(self, sparse: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.sparse = sparse

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of ``outputs`` (N, classes) against ``targets``."""
        if self.sparse == (targets.dim() == outputs.dim()):
            wanted = "class indices, one per example" if self.sparse else "one row of probabilities per example"
            raise DataError(
                f"sparse={self.sparse} expects {wanted}, got targets of shape {tuple(targets.shape)} for outputs of "
                f"shape {tuple(outputs.shape)}; set sparse={not self.sparse}"
            )
        return super().forward(outputs, targets)


def build_loss(name: str, **args: Any) -> nn.Module:
    """Build a loss by its registered name, or by the name of any loss class in ``torch.nn``.

    Args:
        name: Such as ``"cross_entropy"``, ``"mse"``, ``"CrossEntropyLoss"``, ``"HuberLoss"``.
        **args: Arguments of the class.

    Raises:
        ValueError: Unknown name or argument; the nearest is suggested.

    Example:
        >>> build_loss("cross_entropy", label_smoothing=0.1).label_smoothing
        0.1
        >>> build_loss("cross_entopy")
        Traceback (most recent call last):
            ...
        ValueError: unknown loss 'cross_entopy'; did you mean 'cross_entropy'? Known: ...
    """
    builder = LOSSES.get(name) if name in LOSSES else _torch_loss(name)
    check_arguments(builder, args, f"loss {name!r}")
    try:
        return cast(nn.Module, builder(**args))
    except (TypeError, ValueError) as error:
        raise ValueError(f"loss {name!r} cannot be built from {args}: {error}") from error


def _torch_loss(name: str) -> Any:
    known = {
        key: item
        for key, item in vars(nn).items()
        if key.endswith("Loss") and inspect.isclass(item) and issubclass(item, nn.Module)
    }
    if name in known:
        return known[name]
    names = (*LOSSES.names(), *sorted(known))
    hint = checks.nearest_hint(name, names) or "."
    raise ValueError(f"unknown loss {name!r}{hint} Known: {', '.join(names)}")
