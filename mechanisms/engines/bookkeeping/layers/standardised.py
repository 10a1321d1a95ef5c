"""Convolutions with a standardised weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.engines.bookkeeping.layers.convolution import ConvolutionRule, whole_formulas
from mechanisms.engines.bookkeeping.layers.rules import Call, Formula, LayerRule, Term


@dataclass(frozen=True)
class Standardised:
    """A weight of which each output channel has mean 0 and norm 1, and how gradients pass through.

    Args:
        rows: The standardised weight, shape (O, n).
        inverse_norms: Inverse norms of the centred channels, shape (O, 1); at most ``1 / sqrt(eps)``.
        varies: Whether a channel was divided by its own norm, shape (O, 1), and not by ``sqrt(eps)``.
    """

    rows: Tensor
    inverse_norms: Tensor
    varies: Tensor

    @classmethod
    def of(cls, weight: Tensor, eps: float) -> Standardised:
        """Standardise a weight of shape (O, ...); a nearly constant channel is only divided by ``sqrt(eps)``."""
        flat = weight.flatten(1)
        centred = flat - flat.mean(1, keepdim=True)
        squares = centred.square().sum(1, keepdim=True)
        inverse_norms = squares.clamp(min=eps).rsqrt()
        return cls(centred * inverse_norms, inverse_norms, squares >= eps)

    def dots(self, gradients: Tensor) -> Tensor:
        """Inner products (B, O) of gradients (B, O, n) with the standardised channels."""
        products: Tensor = torch.einsum("bon,on->bo", gradients, self.rows)
        return products

    def pull_back_(self, gradients: Tensor, dots: Tensor, gain: Tensor) -> Tensor:
        """Gradients (B, O, n) for ``gain * rows``, changed in place to those for the original weight."""
        gradients -= gradients.mean(2, keepdim=True)
        gradients.addcmul_((dots * self.varies.t()).unsqueeze(2), self.rows, value=-1)
        return gradients.mul_(gain.view(-1, 1) * self.inverse_norms)


class StandardisedConvolutionRule(LayerRule):
    """A convolution with the weight ``gain * Standardised.of(weight, eps)``, per output channel.

    The gradient of one example with respect to that weight is that of a plain convolution. The standardisation is the
    same for all examples, and so is its Jacobian, whose transpose gives the gradients of ``weight`` and ``gain``. Norms
    are those of the resulting rows, which are also what is added, so cancellation cannot exceed the bound.

    The layer has the attributes of a convolution, a parameter ``gain`` of shape (O,), and ``eps``.
    """

    def batched_dims(self, layer: nn.Module) -> int:
        """Rows, channels and positions."""
        return ConvolutionRule().batched_dims(layer)

    def example_gradients(self, call: Call) -> Mapping[str, Tensor]:
        """``weight`` (B, O, C / groups, *kernel), ``gain`` (B, O) and ``bias`` (B, O)."""
        layer: Any = call.layer
        found: dict[str, Tensor] = {}
        if "weight" in call.wanted or "gain" in call.wanted:
            plain = ConvolutionRule().example_gradients(replace(call, wanted=("weight",)))["weight"]
            found["weight"], found["gain"] = _pulled_back(layer, plain)
        if "bias" in call.wanted:
            found["bias"] = call.output_grad.flatten(2).sum(2)
        return {name: found[name] for name in call.wanted}

    def formulas(self, call: Call) -> Mapping[str, Sequence[Formula]]:
        """Instantiate the gradients of the weight by one of the ways of a plain convolution; they give the gain's."""
        layer: Any = call.layer
        x, g = call.inputs[0], call.output_grad
        shared: list[Tensor] = []

        def weight_term(run: Callable[[], Term]) -> Term:
            gradients, dots = _pulled_back(layer, run().held[0].view(len(g), *layer.weight.shape))
            shared[:] = [dots]
            return Term.of_rows(gradients.flatten(1))

        def gain_term(run: Callable[[], Term]) -> Term:
            if not shared:  # the weight is frozen, or its term is computed elsewhere
                weight_term(run)
            return Term.of_rows(shared.pop())

        found: dict[str, Sequence[Formula]] = {}
        ways = whole_formulas(call, x, g) if {"weight", "gain"} & set(call.wanted) else []
        if "weight" in call.wanted:
            found["weight"] = [replace(way, run=partial(weight_term, way.run)) for way in ways]
        if "gain" in call.wanted:
            found["gain"] = [Formula("with the weight", partial(gain_term, ways[0].run), elements=g[:, :, 0].numel())]
        if "bias" in call.wanted:
            found["bias"] = ConvolutionRule().formulas(replace(call, wanted=("bias",)))["bias"]
        return found


def _pulled_back(layer: Any, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``weight``, in place of those of the convolution's weight (B, O, ...), and of ``gain``."""
    standardised = Standardised.of(layer.weight.detach().to(gradients.dtype), layer.eps)
    rows = gradients.flatten(2)
    dots = standardised.dots(rows)
    standardised.pull_back_(rows, dots, layer.gain.detach().to(gradients.dtype))
    return rows.view(gradients.shape), dots
