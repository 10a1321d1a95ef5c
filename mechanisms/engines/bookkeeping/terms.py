"""From recorded calls to terms: for each parameter, the squared norms per unit and the clipped sum."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mechanisms.engines.batch import Batch
from mechanisms.engines.bookkeeping.formulas import FormulaBook
from mechanisms.engines.bookkeeping.layers.cancellation import TermSizes
from mechanisms.engines.bookkeeping.layers.rules import Call, LayerRule, Term
from mechanisms.engines.bookkeeping.passes import Pass
from mechanisms.engines.bookkeeping.recorder import Record
from mechanisms.engines.bookkeeping.scratch import Scratch
from mechanisms.engines.bookkeeping.sites import Site
from mechanisms.engines.bookkeeping.unit_members import UnitMembers
from mechanisms.engines.precision import Precision
from mechanisms.units import ClippedUnit


@dataclass(frozen=True)
class LayerUse:
    """All calls of one layer in a pass that use the same parameters.

    Args:
        site: Site of the layer.
        flat_index: Position of each parameter in the flat layout, by the rule's name.
        rule: The layer's rule; None if ``rows`` are given.
        calls: Calls for the rule, with ``fold`` rows per example.
        fold: Rows per example.
        rows: Per-example gradients computed by autograd, by position.
    """

    site: Site
    flat_index: dict[str, int]
    rule: LayerRule | None
    calls: list[Call]
    fold: int = 1
    rows: dict[int, Tensor] | None = None


def layer_uses(done: Pass, batch_size: int, dtype: torch.dtype) -> list[LayerUse]:
    """The layer uses of a pass whose terms are still to be computed; calls of one layer are joined if its rule can."""
    uses: list[LayerUse] = []
    grouped: dict[tuple[Any, ...], list[tuple[Record, Tensor]]] = defaultdict(list)
    for record, grads in done.records:
        if record.rule is None:
            pairs = zip(record.flat_index.values(), grads, strict=True)
            rows = {position: grad.to(dtype) for position, grad in pairs if grad is not None}
            uses.append(LayerUse(record.site, {}, None, [], rows=rows))
        elif grads[0] is not None:
            fold = _fold(record)
            grouped[id(record.site), tuple(record.flat_index.items()), fold].append((record, grads[0]))
    for (_, _, fold), recorded in grouped.items():
        first = recorded[0][0]
        assert first.rule is not None
        calls = [_call(record, grad, batch_size, dtype) for record, grad in recorded]
        joined = first.rule.join(calls) if len(calls) > 1 else None
        uses.append(LayerUse(first.site, first.flat_index, first.rule, calls if joined is None else [joined], fold))
    return uses


class EarlyTerms:
    """Terms computed during the backward pass, while a layer's gradient is still in the cache.

    Possible for parameters that a single call uses, if examples are clipped individually: their norms need no other
    record. The layer's input and output gradient are freed at once, so a pass needs about the memory of plain training.

    Args:
        batch: The batch of the pass.
        formulas: Chooses among a layer's formulas.
        scratch: Provides memory for large arrays.
        dtype: Type of norms and sums.
        precision: Precision of the pass, but not of the terms.

    Attributes:
        terms: Terms by position in the flat layout.
    """

    def __init__(
        self, batch: Batch, formulas: FormulaBook, scratch: Scratch, dtype: torch.dtype, precision: Precision
    ) -> None:
        self._batch, self._formulas, self._scratch = batch, formulas, scratch
        self._dtype, self._precision = dtype, precision
        self.terms: dict[int, Term] = {}

    def subscribe(self, records: Sequence[Record]) -> None:
        """Register for the gradients of all records whose terms need no other record."""
        if self._batch.group_ids is not None:
            return
        counts = Counter(position for record in records for position in record.flat_index.values())
        for record in records:
            alone = all(counts[position] == 1 for position in record.flat_index.values())
            if record.rule is not None and _fold(record) == 1 and alone:
                record.on_gradient = self.on_gradient

    def on_gradient(self, record: Record, grad: Tensor) -> None:
        """Compute the terms of a record."""
        assert record.rule is not None
        call = _call(record, grad, self._batch.size, self._dtype, self._scratch)
        with self._precision.interrupted():
            self.terms.update(_direct(record.site, record.flat_index, record.rule, call, self._formulas))


def terms_of(uses: Sequence[LayerUse], batch: Batch, unit: ClippedUnit, formulas: FormulaBook) -> dict[int, Term]:
    """One term per used parameter, by position in the flat layout; squared norms are per unit.

    Args:
        uses: From ``layer_uses``.
        batch: The batch of the pass.
        unit: The clipped unit.
        formulas: Chooses among a layer's formulas.
    """
    counts = Counter(position for use in uses for position in _positions(use))
    members = None if batch.group_ids is None else UnitMembers(batch.group_ids, batch.num_units)
    terms: dict[int, Term] = {}
    rows: dict[int, Tensor] = {}
    sizes: dict[int, list[TermSizes]] = defaultdict(list)
    for use in uses:
        # Norms do not add up over calls: a parameter with several uses, or an example with several rows or in a group,
        # needs the sum of its gradients before the norm. Those are instantiated, unless the rule knows better; all
        # others take the cheapest formula.
        single = use.fold == 1 and len(use.calls) == 1
        alone = {name: p for name, p in use.flat_index.items() if single and counts[p] == 1}
        if alone:
            assert use.rule is not None
            if members is None:
                terms.update(_direct(use.site, alone, use.rule, use.calls[0], formulas))
            else:
                terms.update(_of_units(alone, use.rule, use.calls[0], members, unit))
        shared = {name: p for name, p in use.flat_index.items() if p not in terms}
        for position, gradient in _instantiated(use, shared, batch.size, members):
            mine = gradient.reshape(batch.num_units, -1)
            rows[position] = rows[position] + mine if position in rows else mine
        for position, part in _sizes_of_calls(use, shared) if members is None else ():
            sizes[position].append(part)
    for position, value in rows.items():
        term = Term.of_rows(value if members is None else value.div_(unit.group_size), overwritable=members is not None)
        parts = sizes.get(position)
        terms[position] = TermSizes.joined(parts).raised(term, value.dtype) if parts else term
    return terms


def _sizes_of_calls(use: LayerUse, flat_index: dict[str, int]) -> Iterator[tuple[int, TermSizes]]:
    """Sizes of the terms of all calls, by position in the flat layout."""
    if use.rule is None or not flat_index:
        return
    for call in use.calls:
        for name, part in use.rule.term_sizes(replace(call, wanted=tuple(flat_index))).items():
            yield flat_index[name], part.of_examples(use.fold)


def _positions(use: LayerUse) -> list[int]:
    return list(use.flat_index.values()) if use.rows is None else list(use.rows)


def _direct(
    site: Site, flat_index: dict[str, int], rule: LayerRule, call: Call, formulas: FormulaBook
) -> dict[int, Term]:
    found = {}
    asked = call if len(flat_index) == len(call.wanted) else replace(call, wanted=tuple(flat_index))
    sizes, dtype = rule.term_sizes(asked), call.output_grad.dtype
    shapes = [tuple(value.shape[1:]) for value in (*call.inputs[:1], call.output_grad)]
    for name, options in rule.formulas(asked).items():
        key = (site.name, name, *shapes)
        term = formulas.run(key, options, partial(site.entries, flat_index[name]), call.output_grad)
        found[flat_index[name]] = sizes[name].raised(term, dtype) if name in sizes else term
    return found


def _of_units(
    flat_index: dict[str, int], rule: LayerRule, call: Call, members: UnitMembers, unit: ClippedUnit
) -> dict[int, Term]:
    found = rule.unit_terms(replace(call, wanted=tuple(flat_index)), members)
    return {flat_index[name]: term.scaled(1 / unit.group_size) for name, term in found.items()}


def _instantiated(
    use: LayerUse, flat_index: dict[str, int], batch_size: int, members: UnitMembers | None
) -> list[tuple[int, Tensor]]:
    """Gradients (units, *shape) of every unit, summed over its members and their rows."""
    if use.rows is not None:
        return [(position, rows if members is None else members.summed(rows)) for position, rows in use.rows.items()]
    found: list[tuple[int, Tensor]] = []
    if not flat_index:
        return found
    assert use.rule is not None
    gradients: Mapping[str, Tensor]
    for call in use.calls:
        asked = replace(call, wanted=tuple(flat_index))
        if use.fold > 1:
            rows = use.rule.example_gradients(asked)
            examples = {name: value.unflatten(0, (batch_size, use.fold)).sum(1) for name, value in rows.items()}
            gradients = examples if members is None else {name: members.summed(examples[name]) for name in examples}
        elif members is None:
            gradients = use.rule.example_gradients(asked)
        else:
            gradients = use.rule.summed_gradients(asked, members)
        found += [(position, gradients[name]) for name, position in flat_index.items()]
    return found


def _fold(record: Record) -> int:
    """Rows per example that the rule does not treat as positions."""
    assert record.rule is not None
    return 1 if record.rule.positional or _is_folded(record) else record.fold


def _is_folded(record: Record) -> bool:
    assert record.rule is not None
    assert record.layer is not None
    return record.fold > 1 and not record.rule.positional and record.rule.folds(record.layer)


def _call(record: Record, grad: Tensor, batch_size: int, dtype: torch.dtype, scratch: Scratch | None = None) -> Call:
    """The record's tensors, with rows in the first dimension, in the dtype of norms and sums."""
    rule, layer = record.rule, record.layer
    assert rule is not None
    assert layer is not None
    divided = (batch_size, record.fold) if rule.positional and record.fold > 1 else None
    inputs = tuple(_rows(value, divided, dtype) for value in record.inputs)
    output_grad = _rows(grad.flatten(0, 1) if record.leading else grad, divided, dtype)
    wanted, key = tuple(record.flat_index), tuple(record.flat_index.values())
    call = Call(layer, inputs, output_grad, wanted, scratch or Scratch(), key)
    return rule.folded(call, record.fold) if _is_folded(record) else call


def _rows(value: Any, divided: tuple[int, int] | None, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point() and value.dtype != dtype:
        value = value.to(dtype)
    return value if divided is None else value.unflatten(0, divided)
