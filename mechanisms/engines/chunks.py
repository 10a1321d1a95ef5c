"""Physical chunks: the parts of a batch that are in memory at once, of about equal or of exactly equal size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from mechanisms.engines.batch import Batch, first_tensor, map_tensors
from mechanisms.units import ClippedUnit


def chunks(batch: Batch, unit: ClippedUnit, physical_batch_size: int | None) -> Iterator[Batch]:
    """Cut a batch into non-empty physical chunks without splitting a unit; group ids are renumbered from 0.

    Each unit, even one without members, appears in exactly one chunk. Chunks have about the same size: a small last
    chunk would take almost as long as the others.
    """
    limit = physical_batch_size or max(batch.size, batch.num_units, 1)
    if batch.group_ids is None:
        limit = even(batch.size, math.ceil(batch.size / limit))
        for start in range(0, batch.size, limit):
            yield batch if limit >= batch.size else batch.select(slice(start, start + limit))
        return
    per_chunk = max(1, limit // unit.group_size) if physical_batch_size else max(batch.num_units, 1)
    for first in range(0, batch.num_units, per_chunk):
        yield _of_units(batch, first, min(first + per_chunk, batch.num_units))


def static_chunks(batch: Batch, unit: ClippedUnit, physical_batch_size: int | None, capacity: int) -> Iterator[Batch]:
    """Cut a batch into chunks that all have the same number of rows and of units; fillers of weight 0 make up for it.

    Nothing is truncated: a batch beyond the capacity takes further chunks, and a batch without rows takes no pass. A
    group is never split, so one with more rows than a chunk takes a multiple of them. Each unit, even one without
    members, appears in exactly one chunk.

    Args:
        batch: The drawn sample.
        unit: The clipped unit.
        physical_batch_size: Largest number of rows in memory at once (in expectation, for groups).
        capacity: Number of rows of a chunk, unless ``physical_batch_size`` is smaller.

    Example:
        >>> batch = Batch(torch.arange(5), torch.arange(5))
        >>> [(part.x.tolist(), part.real.tolist()) for part in static_chunks(batch, ClippedUnit(1, 4), None, 3)]
        [([0, 1, 2], [True, True, True]), ([3, 4, 3], [True, True, False])]
    """
    rows = rows_of_chunk(physical_batch_size, capacity)
    if batch.group_ids is None:
        for start in range(0, batch.size, rows):
            part = batch if batch.size <= rows else batch.select(slice(start, start + rows))
            yield _filled(part, rows, rows)
        return
    units = batch.num_units if rows == capacity else min(batch.num_units, max(1, rows // unit.group_size))
    for first, last in _spans(batch, rows, units):
        part = batch if last - first == batch.num_units else _of_units(batch, first, last)
        # One unit more, for the rows that belong to no group.
        yield _filled(part, math.ceil(part.size / rows) * rows, units + 1) if part.size else part


def rows_of_chunk(physical_batch_size: int | None, capacity: int) -> int:
    """Number of rows of a chunk with static shapes."""
    return min(physical_batch_size or capacity, capacity)


def even(size: int, parts: int) -> int:
    """Size of the largest of ``parts`` nearly equal parts; at least 1."""
    return max(1, math.ceil(size / max(parts, 1)))


def _of_units(batch: Batch, first: int, last: int) -> Batch:
    assert batch.group_ids is not None
    rows = torch.nonzero((batch.group_ids >= first) & (batch.group_ids < last)).flatten()
    part = batch.select(rows)
    assert part.group_ids is not None
    return replace(part, group_ids=part.group_ids - first, units=last - first)


def _spans(batch: Batch, rows: int, units: int) -> Iterator[tuple[int, int]]:
    """First and last unit (exclusive) of each chunk: at most ``units``, with at most ``rows`` rows if several."""
    if batch.num_units <= units and batch.size <= rows:  # as a rule; the counts would make the host wait for a GPU
        if batch.num_units:
            yield 0, batch.num_units
        return
    assert batch.group_ids is not None
    first = held = 0
    for index, count in enumerate(torch.bincount(batch.group_ids, minlength=batch.num_units).tolist()):
        if index - first == units or (index > first and held + count > rows):
            yield first, index
            first, held = index, 0
        held += count
    yield first, batch.num_units


def _filled(part: Batch, rows: int, units: int) -> Batch:
    """A non-empty chunk with fillers after its rows and units.

    Fillers are copies of the first row: whatever the network, the loss or a library asserts about an example holds for
    them too. Zeros could be a singular matrix, an empty sequence or a distribution that does not add up to one.
    """
    device, missing = first_tensor(part.x).device, rows - part.size
    real = torch.arange(units, device=device) < part.num_units
    filled = replace(part, real=real, fillers=units - part.num_units)
    if missing:
        index = torch.arange(rows, device=device)
        index[part.size :] = 0
        x, y = (map_tensors(lambda t: t.index_select(0, index), value) for value in (part.x, part.y))
        filled = replace(filled, x=x, y=y)
        if part.views is not None:
            filled = replace(filled, views=part.views.select(index))
    if part.group_ids is None:
        return filled
    ids = torch.cat((part.group_ids, part.group_ids.new_full((missing,), units - 1)))
    return replace(filled, group_ids=ids, units=units)
