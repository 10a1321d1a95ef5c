"""The engine protocol: the clipped sum, the norms, and the bound on how far one example can move the sum."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from mechanisms.clipping import ClipMechanism, Fixed, beside
from mechanisms.engines.batch import Batch
from mechanisms.engines.chunks import chunks, rows_of_chunk, static_chunks
from mechanisms.engines.host_copy import HostCopy
from mechanisms.engines.losses import ExampleLosses, LossFunction
from mechanisms.engines.modes import plain_modes, require_unwatched
from mechanisms.engines.parameters import FlatLayout
from mechanisms.engines.precision import require_full_products
from mechanisms.engines.probing import preserve_state
from mechanisms.engines.row_clearing import clear_rows_
from mechanisms.engines.slices import slices
from mechanisms.engines.state.pass_boundary import PassBoundary
from mechanisms.engines.state.python_state import PythonState
from mechanisms.engines.tally import Tally
from mechanisms.units import ClippedUnit
from monitors import checks
from monitors.errors import UnprotectedUpdateError
from monitors.registry import Registry

ENGINES: Registry[type[Engine]] = Registry("engine")

#: Held by a thread that trains or computes a sum: passes seed the generators of the process, replace functions of torch
#: in all threads, and leave what they record in the layers of the network.
ONE_AT_A_TIME = threading.RLock()

#: Relative margin between clipped norms and their bound, so that rounding in float32 cannot exceed the bound: up to 256
#: squares are added to one number, each of which may lose half a rounding.
ROUNDING_MARGIN = 1e-5


@dataclass(frozen=True)
class ClippedSum:
    """Sum of clipped unit gradients, with the bound on how far one example can move it.

    Args:
        flat_grad: Sum over units, shape (P,); private until noise is added.
        norms: Norms before clipping, shape (units, blocks); NaN or infinite for a unit that was left out; private.
        sensitivity: L2 sensitivity to adding or removing one example.
        norm_bound: The clip mechanism's current bound, which scales the noise.
        tally: The loss, and the units that were left out; private. Default: no example, and none.
    """

    flat_grad: Tensor
    norms: Tensor
    sensitivity: float
    norm_bound: float
    tally: Tally = field(default_factory=Tally.of)

    @property
    def loss(self) -> float:
        """Mean loss of the drawn examples (NaN for none); private."""
        return self.tally.loss

    @property
    def rejected(self) -> int:
        """Units left out because their gradient was not finite; private."""
        return self.tally.rejected


@dataclass(frozen=True)
class PartialSum:
    """Results of one physical chunk besides its sum.

    Args:
        norms: Norms before clipping, shape (units, blocks). Those of fillers come last; they may be missing.
        counts: See ``counts``; made before the sum, so that the host need not wait for the sum.
    """

    norms: Tensor
    counts: HostCopy


class Engine(ABC):
    """Computes ``sum_u min(1, bound / |g_u|) g_u`` over the units of a batch.

    Law: each engine gives the numbers of the one-example loop, or smaller factors for gradients whose terms cancel
    (``mechanisms.engines.bookkeeping.layers.cancellation``). ``physical_batch_size`` bounds memory and changes
    nothing but the order of additions. Sums of several threads are computed one after the other.

    Args:
        unit: The clipped unit.
        physical_batch_size: Maximum number of examples (in expectation, for groups) in memory at once; None: the whole
            batch.

    Attributes:
        capacity: Static shapes: the number of rows of each chunk, unless ``physical_batch_size`` is smaller. Fillers of
            weight 0 make up for missing rows, and larger batches take several chunks, so it changes nothing but the
            order of additions. None: chunks have the size of what was drawn.
    """

    name: ClassVar[str]
    #: Why an example affects the sum through its own gradient only, in words.
    proof: ClassVar[str]
    #: Whether the network's code can read values, which it cannot in an isolated pass.
    shows_values: ClassVar[bool] = False
    #: An independent engine that decides if this one and the one-example loop disagree.
    witness: ClassVar[type[Engine] | None] = None
    #: Whether ``partial_sum`` gives fillers (``Batch.real``) weight 0; without that, the shapes cannot be static.
    takes_fillers: ClassVar[bool] = False
    #: Whether CUDA graphs may be recorded on a GPU.
    cuda_graphs: bool = False
    #: Whether ``partial_sum`` averages the losses of an example's views (``Batch.multiplicity``).
    takes_views: ClassVar[bool] = False

    def __init__(self, unit: ClippedUnit, physical_batch_size: int | None = None) -> None:
        if physical_batch_size is not None:
            checks.positive_int(physical_batch_size=physical_batch_size)
        self.unit = unit
        self.physical_batch_size = physical_batch_size
        self.capacity: int | None = None
        self.boundary = PassBoundary(by_value=self.shows_values)
        self._layout: FlatLayout | None = None
        self._state: PythonState | None = None  # in which the network had this layout
        self._parameters: list[nn.Parameter] = []
        self._kinds: list[tuple[object, ...]] = []

    @classmethod
    @abstractmethod
    def refuses(cls, network: nn.Module, loss_fn: LossFunction, unit: ClippedUnit, example: Batch) -> str | None:
        """None if this engine supports the network, else the reason in words.

        Args:
            network: The network, in the mode in which it will be trained.
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
        """Add the clipped sum of one non-empty chunk to ``total``, shape (P,). Its views, if any, have been made.

        Implementations run each pass inside ``boundary.around``, and call the network inside
        ``boundary.user_code``. Unit ids of the chunk are 0 .. ``batch.num_units`` - 1.
        """

    @classmethod
    def run_unwatched(cls, network: nn.Module, loss_fn: LossFunction, example: Batch) -> None:
        """Run one pass over the first example in the way most training passes run; discard the result.

        The first passes of an engine run under a dispatch mode, for which PyTorch decomposes some losses into different
        operators: a pass that succeeds there may fail without the mode.
        """
        engine, clip = cls(ClippedUnit(1, 1)), Fixed()
        engine.boundary.isolation = "trust"
        clip.start(1.0)
        with preserve_state(network, loss_fn):
            engine.clipped_sum(network, loss_fn, example.with_examples(example.x, example.y).select(slice(1)), clip)

    @property
    def held_bytes(self) -> int:
        """Number of bytes kept for reuse between steps."""
        return 0

    def release(self) -> None:
        """Free the memory kept for reuse between steps; the next step allocates it again."""
        return

    def explain(self) -> str:
        """Say how this engine computes the sums; more is known after the first batch."""
        limit, rows = self.physical_batch_size, self.static_rows
        if rows:
            return f"engine {self.name!r}, static shapes: {rows} examples at once, some of weight 0"
        return f"engine {self.name!r}" + (f", at most {limit} examples at once" if limit else "")

    @property
    def static_rows(self) -> int | None:
        """The number of rows of every chunk; None if it is not constant."""
        if self.capacity is None or not self.takes_fillers:
            return None
        return rows_of_chunk(self.physical_batch_size, self.capacity)

    def replays_on(self, device: torch.device) -> bool:
        """Whether passes with static shapes are recorded on this device and replayed."""
        del device
        return False

    def explain_isolation(self) -> str:
        """Say why an example affects the sum through its own gradient only."""
        if self.boundary.isolation == "trust":
            return (
                f"isolation: not verified; {self.proof}, but state that passes leave behind is kept (isolation='trust')"
            )
        return f"isolation: verified; {self.proof}, and the state of the network and the loss is restored after each"

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

        Guarantees: each unit contributes at most ``clip.norm_bound``; a unit with a non-finite gradient contributes
        exactly zero; an empty batch gives zeros; the parameters' ``grad`` and the network's state do not change.

        Args:
            network: Any module; P is the total number of entries of its trainable parameters.
            loss_fn: ``loss_fn(outputs, targets)``; see ``ExampleLosses``.
            batch: The drawn sample, possibly empty.
            clip: A started clip mechanism.
            out: Receives the sum: a vector (P,) in the dtype of norms and sums. None: a new one.

        Raises:
            ConfigError: torch is set to reduced-precision float32 products.
        """
        require_full_products()
        with ONE_AT_A_TIME:
            return self._clipped_sum(network, loss_fn, batch, clip, out)

    def _clipped_sum(
        self, network: nn.Module, loss_fn: LossFunction, batch: Batch, clip: ClipMechanism, out: Tensor | None
    ) -> ClippedSum:
        losses = ExampleLosses(loss_fn)
        self.boundary.begin_step(network, losses)
        layout = self._layout_of(network)
        total = layout.zeros(layout.size) if out is None else out.zero_()
        self._prepare(network, batch)
        norms, counts = [], []
        for chunk in self._chunks(batch):
            part = self.partial_sum(network, losses, chunk.made(), clip, layout, total)
            norms.append(part.norms[: chunk.num_units - chunk.fillers])
            counts.append(part.counts)
        if not norms:
            norms.append(layout.zeros(0, max(clip.blocks(layout.names)) + 1))
        return ClippedSum(
            flat_grad=total,
            norms=norms[0] if len(norms) == 1 else torch.cat(norms),
            sensitivity=self.unit.sensitivity_factor * clip.norm_bound,
            norm_bound=clip.norm_bound,
            tally=Tally(batch.size, counts),
        )

    def _layout_of(self, network: nn.Module) -> FlatLayout:
        """The layout of the parameters; the same object as long as nothing of the network has changed."""
        state = None if self.boundary.isolation == "trust" else self.boundary.state
        kinds = [(each.requires_grad, each.dtype, each.device, each.shape) for each in self._parameters]
        if self._layout is None or state is None or state is not self._state or kinds != self._kinds:
            self._state, self._parameters, self._layout = state, list(network.parameters()), FlatLayout.of(network)
            self._kinds = [(each.requires_grad, each.dtype, each.device, each.shape) for each in self._parameters]
        return self._layout

    def _prepare(self, network: nn.Module, batch: Batch) -> None:
        """Prepare for the passes of a step, after the layout is known."""
        del network, batch

    def _chunks(self, batch: Batch) -> Iterator[Batch]:
        rows = self._rows_at_once(batch)
        if self.capacity is None or not self.takes_fillers:
            return chunks(batch, self.unit, rows)
        return static_chunks(batch, self.unit, rows, self.capacity)

    def _rows_at_once(self, batch: Batch) -> int | None:
        """The largest number of examples per chunk; None: the whole batch."""
        del batch
        return self.physical_batch_size


def bounded_factors(norms: Tensor, clip: ClipMechanism, entries: int, real: Tensor | None = None) -> Tensor:
    """The clip mechanism's factors, made safe: shape (units, blocks) like ``norms``.

    Whatever the mechanism returns, no unit exceeds the bound of a block, and a unit with a non-finite norm in any block
    gets factor 0 in all blocks, as does a filler. The mechanism sees norm 0 for both.

    Args:
        norms: Shape (units, blocks).
        clip: A started clip mechanism.
        entries: Number of entries of a unit's gradient. Their squares may underflow, so that a norm comes out too small
            by an amount that depends on it.
        real: See ``Batch``.

    Raises:
        UnprotectedUpdateError: The bounds of the blocks together exceed the accounted bound, or the network has left a
            mode on.
    """
    require_unwatched()
    weighs = torch.isfinite(norms).all(dim=1, keepdim=True)
    if real is not None:
        weighs = weighs & real.unsqueeze(1)
    safe = norms.where(weighs, 0.0)
    limits = beside(norms, block_bounds_of(clip, norms.shape[1])) * (1.0 - ROUNDING_MARGIN)
    rounded_away = math.sqrt(entries * torch.finfo(norms.dtype).tiny)
    ceiling = limits / torch.hypot(safe, norms.new_full((), rounded_away))
    factors = torch.nan_to_num(clip.factors(safe), nan=0.0).clamp(min=0.0)
    return torch.minimum(factors, ceiling) * weighs


def block_bounds_of(clip: ClipMechanism, blocks: int) -> list[float]:
    """The clip mechanism's bounds for ``blocks`` blocks.

    Raises:
        UnprotectedUpdateError: Together they exceed the accounted bound.
    """
    bounds = clip.block_bounds(blocks)
    whole = math.hypot(*bounds)
    if len(bounds) != blocks or not whole <= clip.norm_bound * (1 + ROUNDING_MARGIN / 2):
        raise UnprotectedUpdateError(
            f"{type(clip).__name__}.block_bounds({blocks}) returns {len(bounds)} bounds with root sum of squares "
            f"{whole:.9g}, but the noise and the ledger use norm_bound={clip.norm_bound:.9g}; return {blocks} bounds "
            "whose squares add up to at most its square"
        )
    return bounds


def clip_rows(
    unit_grads: Tensor, clip: ClipMechanism, layout: FlatLayout, total: Tensor, real: Tensor | None = None
) -> Tensor:
    """Clip materialised unit gradients and add them to a sum.

    Args:
        unit_grads: Shape (units, P); non-finite rows are overwritten with zeros.
        clip: A started clip mechanism.
        layout: Position of each parameter.
        total: Shape (P,); receives the clipped gradients.
        real: See ``Batch``.

    Returns:
        The norms before clipping, shape (units, blocks).
    """
    block_of = clip.blocks(layout.names)
    columns = layout.columns(unit_grads)
    squared = unit_grads.new_zeros(unit_grads.shape[0], max(block_of) + 1)
    for block, column in zip(block_of, columns, strict=True):
        squared[:, block] += sum(part.square().sum(dim=1) for (part,) in slices(column))
    norms = squared.sqrt()
    factors = bounded_factors(norms, clip, layout.size, real)
    clear_rows_(unit_grads, torch.isfinite(norms).all(dim=1))
    for block, column, part in zip(block_of, columns, total.split(layout.sizes), strict=True):
        part.addmv_(column.T, factors[:, block])
    return norms


def group_rows(example_grads: Tensor, batch: Batch, unit: ClippedUnit) -> Tensor:
    """Unit gradients (units, P) from example gradients (B, P): the sum of the members over the constant group size."""
    if batch.group_ids is None:
        return example_grads
    grouped = example_grads.new_zeros(batch.num_units, example_grads.shape[1])
    return grouped.index_add_(0, batch.group_ids, example_grads).div_(unit.group_size)
