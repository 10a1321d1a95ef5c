"""Layers that normalise within one example and scale by channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from mechanisms.engines.layers.rules import Call, LayerRule, layer_rule


def _scaled(call: Call, normalised: Callable[[], Tensor], dims: tuple[int, ...]) -> Mapping[str, Tensor]:
    """Gradients of ``y = weight * normalised + bias``: sums over the dimensions that the weight does not have."""
    g = call.output_grad
    found = {}
    if "weight" in call.wanted:
        product = normalised().mul_(g)  # a fresh array, and the only one of its size that is needed
        found["weight"] = product.sum(dims) if dims else product
    if "bias" in call.wanted:
        found["bias"] = g.sum(dims) if dims else g
    return found


@layer_rule(nn.LayerNorm)
def layer_norm(call: Call) -> Mapping[str, Tensor]:
    """``weight`` and ``bias`` of shape (B, *normalized_shape)."""
    layer, x = call.layer, call.inputs[0]
    assert isinstance(layer, nn.LayerNorm)
    shape = list(layer.normalized_shape)
    return _scaled(call, lambda: F.layer_norm(x, shape, eps=layer.eps), tuple(range(1, x.dim() - len(shape))))


@layer_rule(nn.GroupNorm)
def group_norm(call: Call) -> Mapping[str, Tensor]:
    """``weight`` and ``bias`` of shape (B, channels)."""
    layer, x = call.layer, call.inputs[0]
    assert isinstance(layer, nn.GroupNorm)
    return _scaled(call, lambda: F.group_norm(x, layer.num_groups, eps=layer.eps), tuple(range(2, x.dim())))


@layer_rule(nn.RMSNorm)
def rms_norm(call: Call) -> Mapping[str, Tensor]:
    """``weight`` of shape (B, *normalized_shape)."""
    layer, x = call.layer, call.inputs[0]
    assert isinstance(layer, nn.RMSNorm)
    shape = list(layer.normalized_shape)
    return _scaled(call, lambda: F.rms_norm(x, shape, eps=layer.eps), tuple(range(1, x.dim() - len(shape))))


@layer_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
class InstanceNormRule(LayerRule):
    """``weight`` and ``bias`` of shape (B, channels); running statistics are refused."""

    def example_gradients(self, call: Call) -> Mapping[str, Tensor]:
        """Sums of ``g * normalised`` and of ``g`` over positions."""
        layer, x = call.layer, call.inputs[0]
        return _scaled(call, lambda: F.instance_norm(x, eps=float(layer.eps)), tuple(range(2, x.dim())))  # type: ignore[arg-type]

    def refuses(self, layer: nn.Module) -> str | None:
        """Running statistics are taken from the data without noise."""
        if getattr(layer, "track_running_stats", False):
            return "track_running_stats=True keeps statistics of the data that carry no noise; set it to False"
        return None
