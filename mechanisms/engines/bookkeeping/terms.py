"""From recorded calls to terms: each parameter's squared norms per unit, and its clipped sum."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mechanisms.engines.batch import Batch
from mechanisms.engines.bookkeeping.formulas import PlanBook
from mechanisms.engines.bookkeeping.layers.rules import Call, LayerRule, Term
from mechanisms.engines.bookkeeping.passes import Pass
from mechanisms.engines.bookkeeping.recorder import Record
from mechanisms.engines.bookkeeping.scratch import Scratch
from mechanisms.engines.bookkeeping.sites import Site
from mechanisms.units import ClippedUnit


@dataclass(frozen=True)
class Job:
    """All calls of one layer with the same parameters.

    Args:
        site: The layer's site.
        names: Position of each parameter in the flat layout, by the rule's name.
        rule: The layer's rule; None where ``rows`` are given.
        calls: Calls for the rule; one row per example, or ``fold`` rows.
        fold: Rows per example.
        rows: Per-example gradients that autograd has found, by position.
    """

    site: Site
    names: dict[str, int]
    rule: LayerRule | None
    calls: list[Call]
    fold: int = 1
    rows: dict[int, Tensor] | None = None


def jobs_of(done: Pass, batch_size: int, dtype: torch.dtype) -> list[Job]:
    """The work that a pass leaves; calls of one layer are joined where its rule can."""
    jobs: list[Job] = []
    grouped: dict[tuple[Any, ...], list[tuple[Record, Tensor]]] = defaultdict(list)
    for record, grads in done.records:
        if record.rule is None:
            pairs = zip(record.names.values(), grads, strict=True)
            rows = {position: grad.to(dtype) for position, grad in pairs if grad is not None}
            jobs.append(Job(record.site, {}, None, [], rows=rows))
        elif grads[0] is not None:
            fold = _fold(record)
            grouped[id(record.site), tuple(record.names.items()), fold].append((record, grads[0]))
    for (_, _, fold), recorded in grouped.items():
        first = recorded[0][0]
        assert first.rule is not None
        calls = [_call(record, grad, batch_size, dtype) for record, grad in recorded]
        joined = first.rule.join(calls) if len(calls) > 1 else None
        jobs.append(Job(first.site, first.names, first.rule, calls if joined is None else [joined], fold))
    return jobs


class Arrivals:
    """Terms made in the backward pass, of parameters that one call uses and that are clipped example by example.

    A layer's input and output gradient are let go as soon as its terms are known: the memory of a pass is about that of
    plain training, and what is read was just written.

    Args:
        batch: The batch of the pass.
        plans: Chooses among a layer's plans.
        scratch: Where plans find memory.
        dtype: Type of norms and sums.

    Attributes:
        terms: By the parameter's position.
    """

    def __init__(self, batch: Batch, plans: PlanBook, scratch: Scratch, dtype: torch.dtype) -> None:
        self._batch, self._plans, self._scratch, self._dtype = batch, plans, scratch, dtype
        self.terms: dict[int, Term] = {}

    def expect(self, records: Sequence[Record]) -> None:
        """Ask for the gradients of all records whose terms need no other record."""
        if self._batch.group_ids is not None:
            return
        uses = Counter(position for record in records for position in record.names.values())
        for record in records:
            if record.rule is not None and _fold(record) == 1 and all(uses[p] == 1 for p in record.names.values()):
                record.taker = self.take

    def take(self, record: Record, grad: Tensor) -> None:
        """Make the terms of a record."""
        assert record.rule is not None
        call = _call(record, grad, self._batch.size, self._dtype, self._scratch)
        self.terms.update(_direct(record.site, record.names, record.rule, call, self._plans))


def terms_of(jobs: Sequence[Job], batch: Batch, unit: ClippedUnit, plans: PlanBook) -> dict[int, Term]:
    """One term per used parameter, by its position; squared norms are per unit.

    Args:
        jobs: From ``jobs_of``.
        batch: The batch of the pass.
        unit: What is clipped as one vector.
        plans: Chooses among a layer's plans.
    """
    uses = Counter(position for job in jobs for position in _positions(job))
    terms: dict[int, Term] = {}
    rows: dict[int, Tensor] = {}
    for job in jobs:
        direct = batch.group_ids is None and job.fold == 1 and len(job.calls) == 1
        alone = {name: p for name, p in job.names.items() if direct and uses[p] == 1}
        if alone:
            assert job.rule is not None
            terms.update(_direct(job.site, alone, job.rule, job.calls[0], plans))
        shared = {name: p for name, p in job.names.items() if name not in alone}
        for position, gradient in _instantiated(job, shared, batch.size):
            mine = _per_unit(gradient.reshape(batch.size, -1), batch, unit)
            rows[position] = rows[position] + mine if position in rows else mine
    terms.update({position: Term.of_rows(value) for position, value in rows.items()})
    return terms


def _positions(job: Job) -> list[int]:
    return list(job.names.values()) if job.rows is None else list(job.rows)


def _direct(site: Site, names: dict[str, int], rule: LayerRule, call: Call, plans: PlanBook) -> dict[int, Term]:
    found = {}
    asked = call if len(names) == len(call.wanted) else replace(call, wanted=tuple(names))
    shapes = [tuple(value.shape[1:]) for value in (*call.inputs[:1], call.output_grad)]
    for name, options in rule.plans(asked).items():
        key = (site.name, name, *shapes)
        found[names[name]] = plans.run(key, options, partial(site.entries, names[name]), call.output_grad)
    return found


def _instantiated(job: Job, names: dict[str, int], batch_size: int) -> list[tuple[int, Tensor]]:
    """Gradients (B, *shape) of every example, summed over an example's rows."""
    if job.rows is not None:
        return list(job.rows.items())
    found: list[tuple[int, Tensor]] = []
    if not names:
        return found
    assert job.rule is not None
    for call in job.calls:
        gradients = job.rule.example_gradients(replace(call, wanted=tuple(names)))
        for name, position in names.items():
            gradient = gradients[name]
            if job.fold > 1:
                gradient = gradient.unflatten(0, (batch_size, job.fold)).sum(1)
            found.append((position, gradient))
    return found


def _per_unit(rows: Tensor, batch: Batch, unit: ClippedUnit) -> Tensor:
    if batch.group_ids is None:
        return rows
    grouped = rows.new_zeros(batch.num_units, rows.shape[1])
    return grouped.index_add_(0, batch.group_ids, rows).div_(unit.group_size)


def _fold(record: Record) -> int:
    assert record.rule is not None
    return 1 if record.rule.positional else record.fold


def _call(record: Record, grad: Tensor, batch_size: int, dtype: torch.dtype, scratch: Scratch | None = None) -> Call:
    """The record's tensors, rows first, in the dtype of norms and sums."""
    rule, layer = record.rule, record.layer
    assert rule is not None
    assert layer is not None
    divided = (batch_size, record.fold) if rule.positional and record.fold > 1 else None
    inputs = tuple(_rows(value, divided, dtype) for value in record.inputs)
    output_grad = _rows(grad.flatten(0, 1) if record.leading else grad, divided, dtype)
    return Call(layer, inputs, output_grad, tuple(record.names), scratch or Scratch(), tuple(record.names.values()))


def _rows(value: Any, divided: tuple[int, int] | None, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point() and value.dtype != dtype:
        value = value.to(dtype)
    return value if divided is None else value.unflatten(0, divided)
