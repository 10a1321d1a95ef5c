"""Linear layers, on vectors and on sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mechanisms.engines.bookkeeping.layers.cancellation import TermSizes, row_norms
from mechanisms.engines.bookkeeping.layers.rules import Call, Formula, LayerRule, Term, layer_rule
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

    def term_sizes(self, call: Call) -> Mapping[str, TermSizes]:
        """Those of ``weight``."""
        x, g = _sequences(call)
        return {"weight": TermSizes.of(x, g, _most_in_grams(x, g))} if "weight" in call.wanted else {}

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
    if positions <= _most_in_grams(x, g) and x.dtype != torch.float64:  # whose squares may underflow
        gram = batch * positions**2
        cost = 2.5 * gram * (fan_in + fan_out) + batch * positions * (fan_in * fan_out + 12.0 * (fan_in + fan_out))
        formulas.append(Formula("Gram", partial(_gram, x, g), cost, 3 * gram))
    return formulas


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
    return Term((row_norms(x) * row_norms(g)).square(), _add_product, (x, g))


def _instantiate(call: Call, x: Tensor, g: Tensor) -> Term:
    rows = call.kept("weight", len(x), g.shape[2], x.shape[2])
    return Term.of_rows(torch.bmm(g.transpose(1, 2), x, out=rows), overwritable=True)


def _gram(x: Tensor, g: Tensor) -> Term:
    return Term(gram_squared_norms(x, g), _add_product, (x, g))


def _most_in_grams(x: Tensor, g: Tensor) -> int:
    """Largest number of positions for which Gram matrices are considered."""
    return math.isqrt(int(GRAM_LIMIT * x.shape[2] * g.shape[2]))


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
    """``|sum_t g_t x_t'|^2 = sum_ts (x_t . x_s)(g_t . g_s)`` of each example, float64, shape (B,).

    Args:
        x: Shape (B, T, I).
        g: Shape (B, T, O).
    """
    wide_x, wide_g = x.double(), g.double()
    x_gram, g_gram = torch.bmm(wide_x, wide_x.transpose(1, 2)), torch.bmm(wide_g, wide_g.transpose(1, 2))
    return g_gram.mul_(x_gram).sum((1, 2))
