"""Embedding tables: the gradient is zero except in the rows that an example uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mechanisms.engines.batch import costs_a_wait
from mechanisms.engines.bookkeeping.layers.rules import Call, Formula, LayerRule, Term, layer_rule, squared_norms
from mechanisms.engines.bookkeeping.unit_members import UnitMembers


@layer_rule(nn.Embedding)
class EmbeddingRule(LayerRule):
    """Output gradients of equal tokens of one example are added before the norm is taken."""

    positional: ClassVar[bool] = True

    def batched_dims(self, layer: nn.Module) -> int:
        """Each dimension counts tokens; a single token has none."""
        del layer
        return 1

    def example_gradients(self, call: Call) -> Mapping[str, Tensor]:
        """``weight`` (B, V, D), dense."""
        tokens, g = _tokens(call)
        table = g.new_zeros(call.rows, *_weight(call).shape)
        return {"weight": table.scatter_add_(1, tokens.unsqueeze(2).expand_as(g), g)}

    def summed_gradients(self, call: Call, members: UnitMembers) -> Mapping[str, Tensor]:
        """``weight`` (units, V, D), dense, without the gradients of the examples."""
        (tokens, g), size = _tokens(call), _weight(call).shape
        places = tokens + size[0] * members.ids.unsqueeze(1)
        table = g.new_zeros(members.units * size[0], size[1])
        return {"weight": table.index_add_(0, places.flatten(), g.flatten(0, 1)).unflatten(0, (members.units, size[0]))}

    def unit_terms(self, call: Call, members: UnitMembers) -> Mapping[str, Term]:
        """Hold only the rows in use, unless the host would wait for a GPU to learn which."""
        tokens, g = _tokens(call)
        return {} if costs_a_wait(tokens) else {"weight": _segments(tokens, g, _weight(call), members)}

    def formulas(self, call: Call) -> Mapping[str, Sequence[Formula]]:
        """Hold only the rows in use; unchanged, if all examples have the same tokens without repetition.

        On a GPU, the host does not know the number of rows in use without waiting, so one row is held per token.
        """
        tokens, g = _tokens(call)
        if costs_a_wait(tokens):
            return {"weight": [Formula("first places", partial(_summed_at_first_places, tokens, g, _weight(call)))]}
        if tokens.stride(0) == 0 and len(tokens[0].unique()) == tokens.shape[1]:
            return {"weight": [Formula("same tokens", partial(_same_tokens, tokens[0], g, _weight(call)))]}
        return {"weight": [Formula("segments", partial(_segments, tokens, g, _weight(call)), elements=g.numel())]}

    def join(self, calls: Sequence[Call]) -> Call:
        """Concatenate the tokens of all calls."""
        pairs = [_tokens(call) for call in calls]
        tokens, grads = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
        return Call(calls[0].layer, (tokens,), grads, calls[0].wanted)

    def refuses(self, layer: nn.Module) -> str | None:
        """Refuse options that make examples depend on each other, or write to the table in the forward pass."""
        if getattr(layer, "scale_grad_by_freq", False):
            return (
                "scale_grad_by_freq=True scales an example's gradient by the tokens of other examples; set it to False"
            )
        if getattr(layer, "max_norm", None) is not None:
            return "max_norm overwrites the rows that the data use, without noise; set it to None"
        return None


def _weight(call: Call) -> Any:
    return call.layer.weight


def _tokens(call: Call) -> tuple[Tensor, Tensor]:
    """Tokens (B, T) and gradients (B, T, D), zero at the padding token."""
    tokens, g = call.inputs[0].flatten(1) if call.inputs[0].dim() > 1 else call.inputs[0].unsqueeze(1), call.output_grad
    g = g.reshape(*tokens.shape, g.shape[-1])
    padding = getattr(call.layer, "padding_idx", None)
    if padding is not None:
        g = g.masked_fill((tokens == padding).unsqueeze(2), 0.0)
    return tokens, g


def _same_tokens(tokens: Tensor, g: Tensor, weight: Tensor) -> Term:
    rows = g.flatten(1)

    def add(out: Tensor, factors: Tensor, rows: Tensor) -> None:
        out.view(weight.shape).index_add_(0, tokens, (factors @ rows).view(len(tokens), -1))

    return Term(squared_norms(rows), add, (rows,))


def _segments(tokens: Tensor, g: Tensor, weight: Tensor, members: UnitMembers | None = None) -> Term:
    """One row for each token of each example, or of each unit."""
    batch = len(tokens) if members is None else members.units
    units = torch.arange(batch, device=tokens.device) if members is None else members.ids
    used, segment = torch.unique(tokens + weight.shape[0] * units.unsqueeze(1), return_inverse=True)
    rows = g.new_zeros(len(used), g.shape[2]).index_add_(0, segment.flatten(), g.flatten(0, 1))
    example = used // weight.shape[0]
    # In float64, since one square after the other is added.
    squared = g.new_zeros(batch, dtype=torch.float64).index_add_(0, example, squared_norms(rows).double()).to(g.dtype)

    def add(out: Tensor, factors: Tensor, rows: Tensor) -> None:
        table = out.view(weight.shape)
        table.index_add_(0, used % weight.shape[0], rows * factors[example].unsqueeze(1))

    return Term(squared, add, (rows,), example)


def _first_places(tokens: Tensor) -> Tensor:
    """Position of the first occurrence of each token in its example, shape (B, T).

    Example:
        >>> _first_places(torch.tensor([[7, 2, 7, 2, 5]]))
        tensor([[0, 1, 0, 1, 4]])
    """
    ordered, places = tokens.sort(dim=1, stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    at = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    begin = at.where(new, torch.zeros_like(at)).cummax(dim=1).values
    return torch.empty_like(places).scatter_(1, places, places.gather(1, begin))


def _summed_at_first_places(tokens: Tensor, g: Tensor, weight: Tensor) -> Term:
    """Gradients of equal tokens of an example are added at the first occurrence; the rows of the others are zero."""
    (batch, length), shared = tokens.shape, tokens.stride(0) == 0
    rows = g.new_zeros(g.shape)
    if shared:
        rows.index_add_(1, _first_places(tokens[:1])[0], g)
        return _same_tokens(tokens[0], rows, weight)
    begin = length * torch.arange(batch, device=tokens.device).unsqueeze(1)
    rows.flatten(0, 1).index_add_(0, (begin + _first_places(tokens)).flatten(), g.flatten(0, 1))

    def add(out: Tensor, factors: Tensor, rows: Tensor) -> None:
        weighted = rows * factors.view(-1, 1, 1)
        out.view(weight.shape).index_add_(0, tokens.flatten(), weighted.flatten(0, 1))

    return Term(squared_norms(rows.flatten(1)), add, (rows,), overwritable=True)
