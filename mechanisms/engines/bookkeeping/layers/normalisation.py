"""Layers that normalise within one example and scale by channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from mechanisms.engines.bookkeeping.layers.rules import Call, LayerRule, layer_rule


def _scaled(call: Call, normalised: Callable[[], Tensor], dims: tuple[int, ...]) -> Mapping[str, Tensor]:
    """Gradients of ``y = weight * normalised + bias``: sums over the dimensions that the weight lacks."""
    g = call.output_grad
    found = {}
    if "weight" in call.wanted:
        product = normalised().mul_(g)  # in place: the only array of this size that is needed
        found["weight"] = product.sum(dims) if dims else product
    if "bias" in call.wanted:
        found["bias"] = g.sum(dims) if dims else g
    return found


@layer_rule(nn.LayerNorm, nn.RMSNorm)
class LastDimensionsRule(LayerRule):
    """Layers that normalise over their last dimensions, separately for each row and position."""

    def batched_dims(self, layer: nn.Module) -> int:
        """The normalised dimensions and one for the rows."""
        return 1 + len(_shape(layer))

    def example_gradients(self, call: Call) -> Mapping[str, Tensor]:
        """``weight`` and ``bias`` of shape (B, *normalized_shape)."""
        layer, x = call.layer, call.inputs[0]
        function = F.layer_norm if isinstance(layer, nn.LayerNorm) else F.rms_norm
        shape = _shape(layer)

        def normalised() -> Tensor:
            return function(x, shape, eps=layer.eps)  # type: ignore[arg-type]

        return _scaled(call, normalised, tuple(range(1, x.dim() - len(shape))))


def _shape(layer: nn.Module) -> list[int]:
    assert isinstance(layer, (nn.LayerNorm, nn.RMSNorm))
    return list(layer.normalized_shape)


@layer_rule(nn.GroupNorm)
def group_norm(call: Call) -> Mapping[str, Tensor]:
    """``weight`` and ``bias`` of shape (B, channels)."""
    layer, x = call.layer, call.inputs[0]
    assert isinstance(layer, nn.GroupNorm)
    return _scaled(call, lambda: F.group_norm(x, layer.num_groups, eps=layer.eps), tuple(range(2, x.dim())))


@layer_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
class InstanceNormRule(LayerRule):
    """``weight`` and ``bias`` of shape (B, channels); layers with running statistics are refused."""

    def batched_dims(self, layer: nn.Module) -> int:
        """Rows, channels and positions."""
        kinds = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
        return 3 + next(number for number, kind in enumerate(kinds) if isinstance(layer, kind))

    def example_gradients(self, call: Call) -> Mapping[str, Tensor]:
        """Sums of ``g * normalised`` and of ``g`` over positions."""
        layer, x = call.layer, call.inputs[0]
        return _scaled(call, lambda: F.instance_norm(x, eps=float(layer.eps)), tuple(range(2, x.dim())))  # type: ignore[arg-type]

    def refuses(self, layer: nn.Module) -> str | None:
        """Refuse running statistics, which are computed from the data without noise."""
        if getattr(layer, "track_running_stats", False):
            return "track_running_stats=True keeps statistics of the data without noise; set it to False"
        return None
