"""Linear layers, on vectors and on sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mechanisms.engines.bookkeeping.layers.rules import (
    Call,
    Formula,
    LayerRule,
    Term,
    layer_rule,
    squared_norms_of_products,
)
from mechanisms.engines.bookkeeping.unit_members import UnitMembers

#: Gram matrices are considered up to this size, relative to that of the instantiated gradient.
GRAM_LIMIT = 1.0

#: Work of writing and reading an entry of an instantiated gradient, in multiply-adds.
HELD_WORK = 12.0

#: Up to this many outputs, the library's product over many rows is slow on a CPU; split in parts it is a third faster.
FEW_OUTPUTS = 16
LARGE_PRODUCT = 2**20
PARTS = 8

#: Entries of a weight from which on a product for each unit is faster than instantiating all examples.
LARGE_WEIGHT = 2**12

#: Rounding error allowed for a sum of positions, in roundings of the size of its terms, beside one for each position.
ROUNDINGS = 8

#: Terms of random directions cancel to their size over the square root of their number. Terms that cancel further, by
#: more than this factor, raise the norm: beside such terms, the sum would round what other examples add.
CANCELLATION = 16


@layer_rule(nn.Linear)
class LinearRule(LayerRule):
    """``y = x W' + b``: the gradient of one example is ``sum_t g_t x_t'`` over its T positions.

    References:
        Goodfellow 2015, "Efficient Per-Example Gradient Computations" (vectors: ``|g x'| = |g| |x|``);
        Li et al. 2022, "Large Language Models Can Be Strong Differentially Private Learners" (Gram matrices).
    """

    positional: ClassVar[bool] = True

    def example_gradients(self, call: Call) -> Mapping[str, Tensor]:
        """``weight`` (B, O, I) and ``bias`` (B, O)."""
        x, g = _sequences(call)
        found = {}
        if "weight" in call.wanted:
            found["weight"] = torch.bmm(g.transpose(1, 2), x)
        if "bias" in call.wanted:
            found["bias"] = g.sum(1)
        return found

    def summed_gradients(self, call: Call, members: UnitMembers) -> Mapping[str, Tensor]:
        """On a CPU, one product per unit, instead of one per example."""
        x, g = _sequences(call)
        if x.device.type != "cpu" or "weight" not in call.wanted or x.shape[2] * g.shape[2] < LARGE_WEIGHT:
            return super().summed_gradients(call, members)
        found = {"weight": _product_per_unit(x, g, members)}
        return found | ({"bias": members.summed(g.sum(1))} if "bias" in call.wanted else {})

    def unit_terms(self, call: Call, members: UnitMembers) -> Mapping[str, Term]:
        """On a CPU, ``weight`` by the Gram matrices of the positions of all members, if they are few."""
        x, g = _sequences(call)
        if x.device.type != "cpu" or "weight" not in call.wanted or not members.most:
            return {}
        (fan_in, fan_out), positions = (x.shape[2], g.shape[2]), members.most * x.shape[1]
        gram = members.units * _gram_work(positions, fan_in, fan_out)
        if gram + _sum_work(x, g) > members.units * fan_in * fan_out * HELD_WORK:
            return {}
        return {"weight": _gram(*(members.beside(value).flatten(1, 2) for value in (x, g)))}

    def formulas(self, call: Call) -> Mapping[str, Sequence[Formula]]:
        """Vectors: product of norms. Sequences: instantiate, or use Gram matrices if there are few positions."""
        x, g = _sequences(call)
        found: dict[str, Sequence[Formula]] = {}
        if "weight" in call.wanted:
            found["weight"] = weight_formulas(call, x, g)
        if "bias" in call.wanted:
            bias = g.squeeze(1) if g.shape[1] == 1 else g.sum(1)
            found["bias"] = [Formula("sum", partial(Term.of_rows, bias), elements=bias.numel())]
        return found

    def join(self, calls: Sequence[Call]) -> Call:
        """Concatenate the positions of all calls."""
        pairs = [_sequences(call) for call in calls]
        inputs, grads = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
        return Call(calls[0].layer, (inputs,), grads, calls[0].wanted)


def weight_formulas(call: Call, x: Tensor, g: Tensor) -> list[Formula]:
    """Formulas for gradients ``sum_t g_t x_t'`` of x (B, T, I) and g (B, T, O); exact for any T."""
    (batch, positions, fan_in), fan_out = x.shape, g.shape[2]
    if positions == 1:
        return [Formula("norm product", partial(_norm_product, x.squeeze(1), g.squeeze(1)))]
    held = batch * fan_in * fan_out
    formulas = [Formula("instantiate", partial(_instantiate, call, x, g), held * (positions + HELD_WORK), held)]
    if positions**2 <= GRAM_LIMIT * fan_in * fan_out:
        cost = batch * (_gram_work(positions, fan_in, fan_out) + positions * fan_in * fan_out) + _sum_work(x, g)
        formulas.append(Formula("Gram", partial(_gram, x, g), cost, 3 * batch * positions**2))
    return formulas


def _gram_work(positions: int, fan_in: int, fan_out: int) -> float:
    """Work of the Gram matrices of an example."""
    return 2.5 * positions**2 * (fan_in + fan_out)


def _sum_work(x: Tensor, g: Tensor) -> float:
    """Work of reading and weighting x (B, T, I) and g (B, T, O) for a sum."""
    return HELD_WORK * (x.numel() + g.numel())


def _sequences(call: Call) -> tuple[Tensor, Tensor]:
    x, g = call.inputs[0], call.output_grad
    if x.dim() == 2:
        return x.unsqueeze(1), g.unsqueeze(1)
    return x.flatten(1, -2), g.flatten(1, -2)


def _product_per_unit(x: Tensor, g: Tensor, members: UnitMembers) -> Tensor:
    """``sum_bt g_bt x_bt'`` over the examples b of each unit, shape (units, O, I)."""
    sorted_x, sorted_g = (value.index_select(0, members.order).flatten(0, 1) for value in (x, g))
    rows, start = x.new_zeros(members.units, g.shape[2], x.shape[2]), 0
    for row, count in zip(rows, members.counts, strict=True):
        stop = start + count * x.shape[1]
        if count:
            torch.mm(sorted_g[start:stop].t(), sorted_x[start:stop], out=row)
        start = stop
    return rows


def _norm_product(x: Tensor, g: Tensor) -> Term:
    return Term(squared_norms_of_products(x, g), _add_product, (x, g))


def _instantiate(call: Call, x: Tensor, g: Tensor) -> Term:
    rows = call.kept("weight", len(x), g.shape[2], x.shape[2])
    return Term.of_rows(torch.bmm(g.transpose(1, 2), x, out=rows), overwritable=True)


def _gram(x: Tensor, g: Tensor) -> Term:
    return Term(gram_squared_norms(x, g), _add_product, (x, g))


def _add_product(out: Tensor, factors: Tensor, x: Tensor, g: Tensor) -> None:
    """``out += sum_b factor_b g_b x_b'`` for x (B, I) and g (B, O), or x (B, T, I) and g (B, T, O)."""
    weighted = (g * factors.view(-1, *[1] * (g.dim() - 1))).flatten(0, -2)
    x, table = x.flatten(0, -2), out.view(g.shape[-1], x.shape[-1])
    divided = 0
    if x.device.type == "cpu" and weighted.shape[1] <= FEW_OUTPUTS and x.numel() >= LARGE_PRODUCT:
        divided = len(x) // PARTS * PARTS
        left, right = (value[:divided].unflatten(0, (PARTS, -1)) for value in (weighted, x))
        table += torch.bmm(left.transpose(1, 2), right).sum(0)
    table.addmm_(weighted[divided:].t(), x[divided:])


def gram_squared_norms(x: Tensor, g: Tensor) -> Tensor:
    """``|sum_t g_t x_t'|^2`` of each example; see ``squared_norms_of_grams``.

    Args:
        x: Shape (B, T, I).
        g: Shape (B, T, O).
    """
    wide_x, wide_g = x.double(), g.double()
    grams = torch.bmm(wide_x, wide_x.transpose(1, 2)), torch.bmm(wide_g, wide_g.transpose(1, 2))
    return squared_norms_of_grams(*grams, g.dtype)


def squared_norms_of_grams(x_gram: Tensor, g_gram: Tensor, dtype: torch.dtype) -> Tensor:
    """``|sum_t g_t x_t'|^2 = sum_ts (x_t . x_s)(g_t . g_s)``, or more if the terms cancel.

    The product is in float64, but the gradient sum that it clips is computed in ``dtype``, over the positions of all
    examples. There, rounding errors scale with the largest terms, however small their sum. Three rules make the norm of
    an example at least as large as its contribution, and limit what its terms do to those of others:

    - the rounding error of its own sum is added to its norm;
    - its norm is at least the sum of the sizes of its T terms over ``CANCELLATION * sqrt(T)``;
    - inputs whose squared norm overflows ``dtype`` make it infinite, since their gradients may underflow when weighted.

    Args:
        x_gram: Inner products of the inputs, shape (B, T, T), float64.
        g_gram: Inner products of the output gradients, shape (B, T, T), float64; overwritten.
        dtype: Type of the clipped sum, and of the result, shape (B,).
    """
    positions, limits = x_gram.shape[1], torch.finfo(dtype)
    overflows = x_gram.diagonal(dim1=1, dim2=2).amax(1) > limits.max
    gram = g_gram.mul_(x_gram)
    terms = gram.diagonal(dim1=1, dim2=2).clamp(min=0.0).sqrt_().sum(1)
    norms = gram.sum((1, 2)).clamp_(min=0.0).sqrt_().add_(terms, alpha=(ROUNDINGS + positions) * limits.eps / 2)
    norms = torch.maximum(norms, terms.div_(CANCELLATION * math.sqrt(positions)))
    return norms.masked_fill_(overflows, math.inf).square_().to(dtype)
