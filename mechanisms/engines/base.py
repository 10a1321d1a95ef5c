"""The engine protocol: the clipped sum, the norms, and the bound one example can move the sum by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mechanisms.clipping import ClipMechanism, Fixed, beside
from mechanisms.engines.batch import Batch
from mechanisms.engines.losses import ExampleLosses, LossFunction
from mechanisms.engines.modes import plain_modes, require_unwatched
from mechanisms.engines.parameters import FlatLayout
from mechanisms.engines.precision import require_full_products
from mechanisms.engines.probing import preserve_state
from mechanisms.engines.slices import slices
from mechanisms.engines.state.pass_boundary import PassBoundary
from mechanisms.units import ClippedUnit
from monitors import checks
from monitors.errors import UnprotectedUpdateError
from monitors.registry import Registry

ENGINES: Registry[type[Engine]] = Registry("engine")

#: Clipped norms stay this much (relative) below their bound, so that rounding in float32 cannot lift one above it.
ROUNDING_MARGIN = 1e-6


@dataclass(frozen=True)
class ClippedSum:
    """Sum of clipped unit gradients, with the bound one example can move it by.

    Args:
        flat_grad: Sum over units, shape (P,); private until noise is added.
        norms: Norms before clipping, shape (units, blocks), NaN or infinite for a unit that was left out; private.
        sensitivity: L2, for adding or removing one example.
        norm_bound: The clip mechanism's bound in force; the noise is scaled by it.
        loss: Mean loss of the drawn examples (NaN for none); private.
        rejected: Units left out because their gradient was not finite; private.
    """

    flat_grad: Tensor
    norms: Tensor
    sensitivity: float
    norm_bound: float
    loss: float
    rejected: int


@dataclass(frozen=True)
class PartialSum:
    """What one physical chunk tells beside its sum: norms (units, blocks) and the sum of its examples' losses."""

    norms: Tensor
    loss_sum: Tensor


class Engine(ABC):
    """Computes ``sum_u min(1, bound / |g_u|) g_u`` over the units of a batch.

    Law: every engine gives the numbers of the one-example loop. ``physical_batch_size`` bounds memory and changes no
    number beyond the order of additions.

    Args:
        unit: What is clipped as one vector.
        physical_batch_size: Most examples (in expectation, for groups) in memory at once; None for the whole batch.
    """

    name: ClassVar[str]
    #: What shows that an example reaches the sum by its own gradient alone, in words.
    proof: ClassVar[str]
    #: Whether code of the network sees numbers, not only the tensors of an isolated pass.
    shows_values: ClassVar[bool] = False
    #: An engine that works in another way, which is asked where this one and the one-example loop disagree.
    witness: ClassVar[type[Engine] | None] = None

    def __init__(self, unit: ClippedUnit, physical_batch_size: int | None = None) -> None:
        if physical_batch_size is not None:
            checks.positive_int(physical_batch_size=physical_batch_size)
        self.unit = unit
        self.physical_batch_size = physical_batch_size
        self.boundary = PassBoundary(by_value=self.shows_values)

    @classmethod
    @abstractmethod
    def refuses(cls, network: nn.Module, loss_fn: LossFunction, unit: ClippedUnit, example: Batch) -> str | None:
        """None when this engine can take the network, else the reason in words.

        Args:
            network: In the mode it will be trained in.
            loss_fn: The user's loss.
            unit: The clipped unit.
            example: A batch of one or two examples with the shapes and types of the data.
        """

    @abstractmethod
    def partial_sum(
        self,
        network: nn.Module,
        losses: ExampleLosses,
        batch: Batch,
        clip: ClipMechanism,
        layout: FlatLayout,
        total: Tensor,
    ) -> PartialSum:
        """Add the clipped sum of one non-empty chunk to ``total``, shape (P,).

        Each pass through the network is made inside of ``boundary.around``, and calls it inside of
        ``boundary.user_code``. Unit ids of the chunk are 0 .. ``batch.num_units`` - 1.
        """

    @classmethod
    def run_unwatched(cls, network: nn.Module, loss_fn: LossFunction, example: Batch) -> None:
        """One pass over the first example, as most passes of a training are made; nothing of it is kept.

        The first passes of an engine are watched by a dispatch mode, under which PyTorch composes some losses of other
        operators: one that runs watched may fail unwatched.
        """
        engine, clip = cls(ClippedUnit(1, 1)), Fixed()
        engine.boundary.isolation = "trust"
        clip.start(1.0)
        with preserve_state(network, loss_fn):
            engine.clipped_sum(network, loss_fn, Batch(example.x, example.y).select(slice(1)), clip)

    @property
    def held_bytes(self) -> int:
        """Bytes that are kept from step to step to be used again."""
        return 0

    def release(self) -> None:
        """Let go of what is kept from step to step to be used again; the next step takes it anew."""
        return

    def explain(self) -> str:
        """How this engine computes the sums, for people; more is known once a batch has been seen."""
        limit = self.physical_batch_size
        return f"engine {self.name!r}" + (f", at most {limit} examples at once" if limit else "")

    def explain_isolation(self) -> str:
        """What shows that an example reaches the sum by its own gradient alone, for people."""
        if self.boundary.isolation == "trust":
            return (
                f"isolation: not verified; {self.proof}, but state that passes leave behind is kept (isolation='trust')"
            )
        return f"isolation: verified; {self.proof}, and the state of network and loss is put back after each"

    @plain_modes()
    def clipped_sum(
        self,
        network: nn.Module,
        loss_fn: LossFunction,
        batch: Batch,
        clip: ClipMechanism,
        out: Tensor | None = None,
    ) -> ClippedSum:
        """Clip each unit's gradient and add them up.

        Guarantees: each unit contributes at most ``clip.norm_bound``; a unit whose gradient is not finite contributes
        exactly zero; an empty batch gives zeros; parameters' ``grad`` and the network's state are left as they were.

        Args:
            network: Any module; its trainable parameters, P entries in all, are differentiated.
            loss_fn: ``loss_fn(outputs, targets)``, see ``ExampleLosses``.
            batch: The drawn sample, possibly empty.
            clip: A started clip mechanism.
            out: None, or a vector (P,) of the type of norms and sums, to be overwritten by the sum.

        Raises:
            ConfigError: torch is set to coarse products of float32.
        """
        require_full_products()
        layout = FlatLayout.of(network)
        blocks = max(clip.blocks(layout.names)) + 1
        like = layout.zeros()
        norms, losses = [like.new_zeros(0, blocks)], ExampleLosses(loss_fn)
        loss_sum, total = like.clone(), layout.zeros(layout.size) if out is None else out.zero_()
        self.boundary.begin_step(network, losses)
        for chunk in chunks(batch, self.unit, self.physical_batch_size):
            part = self.partial_sum(network, losses, chunk, clip, layout, total)
            loss_sum += part.loss_sum
            norms.append(part.norms)
        all_norms = torch.cat(norms)
        broken = (~torch.isfinite(all_norms).all(dim=1)).sum()
        loss, rejected = torch.stack((loss_sum.double(), broken.double())).tolist()  # one wait for a GPU
        return ClippedSum(
            flat_grad=total,
            norms=all_norms,
            sensitivity=self.unit.sensitivity_factor * clip.norm_bound,
            norm_bound=clip.norm_bound,
            loss=loss / batch.size if batch.size else float("nan"),
            rejected=int(rejected),
        )


def chunks(batch: Batch, unit: ClippedUnit, physical_batch_size: int | None) -> Iterator[Batch]:
    """Cut a batch into non-empty physical chunks without dividing a unit; group ids are renumbered from 0.

    Every unit appears in exactly one chunk, units without members included. Chunks are of about the same size: a small
    last one would take almost as long as the others.
    """
    limit = physical_batch_size or max(batch.size, batch.num_units, 1)
    if batch.group_ids is None:
        limit = even(batch.size, math.ceil(batch.size / limit))
        for start in range(0, batch.size, limit):
            yield batch if limit >= batch.size else batch.select(slice(start, start + limit))
        return
    per_chunk = max(1, limit // unit.group_size) if physical_batch_size else max(batch.num_units, 1)
    for first in range(0, batch.num_units, per_chunk):
        last = min(first + per_chunk, batch.num_units)
        rows = torch.nonzero((batch.group_ids >= first) & (batch.group_ids < last)).flatten()
        part = batch.select(rows)
        assert part.group_ids is not None
        yield Batch(part.x, part.y, part.group_ids - first, last - first)


def even(size: int, parts: int) -> int:
    """Size of the largest of ``parts`` parts of about the same size; at least 1."""
    return max(1, math.ceil(size / max(parts, 1)))


def bounded_factors(norms: Tensor, clip: ClipMechanism, entries: int) -> Tensor:
    """The clip mechanism's factors, made safe: shape (units, blocks) like ``norms``.

    Whatever the mechanism answers, no unit leaves a block with more than its bound, and a unit with a norm that is not
    finite in any block gets factor 0 everywhere.

    Args:
        norms: Shape (units, blocks).
        clip: A started clip mechanism.
        entries: Entries of a unit's gradient; squares too small for the type may be missing from a norm.

    Raises:
        UnprotectedUpdateError: The bounds of the blocks together exceed the bound that is accounted for, or the network
            has left a mode on.
    """
    require_unwatched()
    finite = torch.isfinite(norms).all(dim=1, keepdim=True)
    safe = torch.where(finite, norms, torch.zeros_like(norms))
    limits = beside(norms, block_bounds_of(clip, norms.shape[1])) * (1.0 - ROUNDING_MARGIN)
    rounded_away = math.sqrt(entries * torch.finfo(norms.dtype).tiny)
    ceiling = limits / torch.hypot(safe, norms.new_full((), rounded_away))
    factors = torch.nan_to_num(clip.factors(safe), nan=0.0).clamp(min=0.0)
    return torch.minimum(factors, ceiling) * finite


def block_bounds_of(clip: ClipMechanism, blocks: int) -> list[float]:
    """The clip mechanism's bounds of ``blocks`` blocks.

    Raises:
        UnprotectedUpdateError: Together they exceed the bound that is accounted for.
    """
    bounds = clip.block_bounds(blocks)
    whole = math.hypot(*bounds)
    if len(bounds) != blocks or not whole <= clip.norm_bound * (1 + ROUNDING_MARGIN / 2):
        raise UnprotectedUpdateError(
            f"{type(clip).__name__}.block_bounds({blocks}) gives {len(bounds)} bounds with root sum of squares "
            f"{whole:.9g}, but the noise and the ledger go by norm_bound={clip.norm_bound:.9g}; return {blocks} bounds "
            "whose squares add up to at most its square"
        )
    return bounds


def clip_rows(unit_grads: Tensor, clip: ClipMechanism, layout: FlatLayout, total: Tensor) -> Tensor:
    """Clip materialised unit gradients and add them to a sum.

    Args:
        unit_grads: Shape (units, P); rows that are not finite are overwritten with zeros.
        clip: A started clip mechanism.
        layout: Where each parameter lies.
        total: Shape (P,); the clipped gradients are added to it.

    Returns:
        The norms before clipping (units, blocks).
    """
    block_of = clip.blocks(layout.names)
    columns = layout.columns(unit_grads)
    squared = unit_grads.new_zeros(unit_grads.shape[0], max(block_of) + 1)
    for block, column in zip(block_of, columns, strict=True):
        squared[:, block] += sum(part.square().sum(dim=1) for (part,) in slices(column))
    norms = squared.sqrt()
    factors = bounded_factors(norms, clip, layout.size)
    unit_grads[~torch.isfinite(norms).all(dim=1)] = 0.0
    for block, column, part in zip(block_of, columns, total.split(layout.sizes), strict=True):
        part.addmv_(column.T, factors[:, block])
    return norms


def group_rows(example_grads: Tensor, batch: Batch, unit: ClippedUnit) -> Tensor:
    """Unit gradients (units, P) from example gradients (B, P): the members' sum over the constant group size."""
    if batch.group_ids is None:
        return example_grads
    grouped = example_grads.new_zeros(batch.num_units, example_grads.shape[1])
    return grouped.index_add_(0, batch.group_ids, example_grads).div_(unit.group_size)
