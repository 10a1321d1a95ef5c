"""The fast engine: one forward pass, one backward pass to the layers' outputs, and a clipped sum per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import is_
from typing import ClassVar
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from mechanisms.clipping import ClipMechanism
from mechanisms.engines.base import (
    ENGINES,
    ONE_AT_A_TIME,
    ClippedSum,
    Engine,
    PartialSum,
    block_bounds_of,
    bounded_factors,
)
from mechanisms.engines.batch import Batch, costs_a_wait
from mechanisms.engines.bookkeeping.formulas import FormulaBook
from mechanisms.engines.bookkeeping.graphs import PassGraphs, PassParts, cannot_replay, shapes_of
from mechanisms.engines.bookkeeping.layers.rules import Term
from mechanisms.engines.bookkeeping.passes import record_backward, record_forward
from mechanisms.engines.bookkeeping.scratch import Scratch
from mechanisms.engines.bookkeeping.survey import Survey
from mechanisms.engines.bookkeeping.terms import EarlyTerms, layer_uses, terms_of
from mechanisms.engines.chunks import even
from mechanisms.engines.cuda_graphs import place_of
from mechanisms.engines.host_copy import HostCopy
from mechanisms.engines.losses import ExampleLosses, LossFunction
from mechanisms.engines.parameters import FlatLayout
from mechanisms.engines.precision import PRECISIONS
from mechanisms.engines.state.settings import computing_settings
from mechanisms.engines.tally import counts
from mechanisms.engines.verification import disagreement
from mechanisms.engines.vmap import VmapEngine
from mechanisms.overriding import speaks_for
from mechanisms.units import ClippedUnit
from monitors.errors import UnsupportedModuleError

#: Working set of one chunk on a CPU: larger chunks spill out of the caches, smaller ones repeat the fixed cost of a
#: pass more often.
CACHE_BYTES = 64 * 2**20

#: A remainder of up to this share of a chunk is spread over the other chunks: as a separate chunk it would take longer.
SPARE = 0.25

#: Chunks that are made for speed have at least as many examples: smaller ones leave cores idle. Half as many are enough
#: if these would take more than ``MODERATE_BYTES``.
SMALLEST_CHUNK, MODERATE_BYTES = 64, 2**30

#: A chunk reads and writes the weights about as often, in its forward pass, its backward pass and its sum.
WEIGHT_PASSES = 8

#: Convolution weights with more entries are seldom instantiated, and then not for all layers at once.
LARGEST_INSTANTIATED = 2**18

_HOOKED = "has a backward hook, which would receive the gradients of the whole batch"


@ENGINES.register("bookkeeping")
class BookKeepingEngine(Engine):
    """Exact clipped sums at about the cost of plain training.

    Autograd never computes the parameters' gradients. From each layer's input and output gradient, the layer's rule
    computes the squared norm of each example's gradient and, once the clip factors are known, the clipped sum.

    Args:
        unit: The clipped unit.
        physical_batch_size: Maximum number of examples in memory at once; None: the whole batch.
        precision: Of the forward and backward pass: ``"fp32"`` (the parameters' own type), ``"tf32"`` (float32 whose
            matrix products are TF32 on a GPU) or ``"bf16"`` (autocast). Norms, factors and sums are in full float32
            either way, so the bound on the influence of an example is the same.
        timed_plans: Time each layer's exact formulas on the first batch instead of estimating their cost (on a GPU they
            are always timed). Can be faster on unusual hardware; two runs may then differ in the last bits.
        cuda_graphs: On a GPU, replay passes that are equal in all but their data as CUDA graphs. Code of the network
            and the loss does not run in a replay. A pass is replayed only if earlier ones neither drew random numbers
            nor changed Python state, and as long as that state does not change.

    References:
        Bu et al. 2023, "Differentially Private Optimization on Large Model at Small Cost" (book-keeping).
    """

    name: ClassVar[str] = "bookkeeping"
    witness: ClassVar[type[Engine] | None] = VmapEngine
    proof: ClassVar[str] = "each layer and the loss see one example at a time (torch.func.vmap with shared weights)"
    takes_fillers: ClassVar[bool] = True
    takes_views: ClassVar[bool] = True

    def __init__(
        self,
        unit: ClippedUnit,
        physical_batch_size: int | None = None,
        *,
        precision: str = "fp32",
        timed_plans: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        super().__init__(unit, physical_batch_size)
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.precision = precision
        self.cuda_graphs = cuda_graphs
        self.formulas = FormulaBook(timed_plans)
        self.graphs = PassGraphs(cuda_graphs)
        self._known: ref[nn.Module] | None = None
        self._structure: list[object] = []
        self._surveyed: FlatLayout | None = None
        self._of_step: tuple[object, ...] | None = None
        self._survey = Survey()
        self._surveys = 0
        self._scratch = Scratch()
        self._fast_chunk: int | None = None
        self._most_rows = 0  # of a batch so far

    @classmethod
    def refuses(cls, network: nn.Module, loss_fn: LossFunction, unit: ClippedUnit, example: Batch) -> str | None:
        """Compare one clipped sum on ``example`` with that of the one-example loop, parameter by parameter."""
        del unit
        hooked = _hooked_backwards(network, loss_fn)
        if hooked is not None:
            return f"{hooked} {_HOOKED}"
        try:
            cls.run_unwatched(network, loss_fn, example)
            return disagreement(cls, network, loss_fn, example)
        except Exception as error:
            lines = str(error).strip().splitlines()
            return lines[0] if lines else type(error).__name__

    def clipped_sum(
        self,
        network: nn.Module,
        loss_fn: LossFunction,
        batch: Batch,
        clip: ClipMechanism,
        out: Tensor | None = None,
    ) -> ClippedSum:
        """See ``Engine``. On a CPU, chunks fit its caches, which is faster and changes no number."""
        with ONE_AT_A_TIME:
            return super().clipped_sum(network, loss_fn, batch, clip, out)

    def _rows_at_once(self, batch: Batch) -> int | None:
        self._most_rows = max(self._most_rows, batch.size)
        if not batch.size or (batch.group_ids is not None and self.capacity is not None):
            return self.physical_batch_size
        fast = self._fast_rows(batch.size if self.capacity is None else self.capacity)
        return min((size for size in (self.physical_batch_size, fast) if size), default=None)

    def _fast_rows(self, size: int) -> int | None:
        """Rows of the chunks, as large as each other, into which ``size`` rows are cut for speed; None: one chunk."""
        return self._fast_chunk and even(size, math.ceil(size / self._fast_chunk - SPARE))

    @property
    def static_rows(self) -> int | None:
        """See ``Engine``; known after the first batch, as chunks are also cut for speed."""
        rows = super().static_rows
        return rows if rows is None or self.unit.grouped else min(rows, self._fast_rows(self.capacity or rows) or rows)

    def replays_on(self, device: torch.device) -> bool:
        """See ``Engine``."""
        return self.graphs.records_on(device) and self.boundary.isolation != "trust"

    @property
    def held_bytes(self) -> int:
        """See ``Engine``: per-example gradients of one chunk, of the layers that instantiate them."""
        return self._scratch.held_bytes

    def release(self) -> None:
        """See ``Engine``."""
        self._scratch = Scratch()
        self.graphs.forget()

    def explain(self) -> str:
        """Say which formula each layer uses and why; the figures are known after the first batch."""
        lines = [f"engine 'bookkeeping', precision {self.precision}"]
        for site in self._survey.sites:
            kind = type(site.module).__name__
            lines.append(f"  {site.name or 'network'} ({kind}): {site.how.words}")
            chosen = {key: choice for key, choice in self.formulas.choices.items() if key[0] == site.name}
            lines += [f"    {key[1]} {key[2:]}: {choice.words()}" for key, choice in chosen.items()]
        sizes, rows = [size for size in (self.physical_batch_size, self._fast_chunk) if size], self.static_rows
        if rows:
            lines.append(f"  static shapes: chunks of {rows} examples, some of weight 0, which changes no number")
        elif sizes and not 0 < self._most_rows <= min(sizes):
            lines.append(f"  batches are processed in chunks of about {min(sizes)} examples, which changes no number")
        device = next((value.device for value in self._survey.parameters.values()), None)
        verified = self.boundary.isolation != "trust"
        launched = self.graphs.words(device) if verified else None
        lines += [f"  {launched}"] if launched else []
        return "\n".join(lines)

    def partial_sum(
        self,
        network: nn.Module,
        losses: ExampleLosses,
        batch: Batch,
        clip: ClipMechanism,
        layout: FlatLayout,
        total: Tensor,
    ) -> PartialSum:
        """Run one forward pass and one backward pass to the layers' outputs, then add up the layers' terms."""
        blocks, like = clip.blocks(layout.names), layout.zeros()
        if not batch.size:  # a chunk of empty groups
            norms = like.new_zeros(batch.num_units, max(blocks) + 1)
            return PartialSum(norms, HostCopy(counts(norms, like, batch.real)))
        parts = PassParts(
            partial(self._terms_of_pass, network, losses, blocks, layout),
            lambda norms, real: bounded_factors(norms, clip, layout.size, real),
            partial(self._add, blocks, layout, total),
            total,
        )
        key = self._recording_key(batch, blocks, total)
        if key is not None:
            parts = replace(parts, constants=_constants_of_factors(clip, max(blocks) + 1))
        return PartialSum(*self.graphs.run(key, parts, batch, self.boundary))

    def _terms_of_pass(
        self, network: nn.Module, losses: ExampleLosses, blocks: list[int], layout: FlatLayout, batch: Batch
    ) -> tuple[tuple[dict[int, Term], Tensor], Tensor, Tensor]:
        """Terms and norms, the norms again, and the counts; see ``PassParts``."""
        precision = PRECISIONS[self.precision]
        with self.boundary.user_code():
            recorded = record_forward(network, losses, batch, self._survey, precision)
        early = EarlyTerms(batch, self.formulas, self._scratch, layout.dtype, precision)
        early.subscribe(recorded[0].records)
        done = record_backward(recorded, self._survey, precision)
        loss_sum = batch.loss_sum(done.losses).to(layout.dtype)
        terms = early.terms | terms_of(layer_uses(done, batch.size, layout.dtype), batch, self.unit, self.formulas)
        for record in recorded[0].records:
            record.let_go()
        norms = _norms(terms, blocks, layout.zeros(), batch.num_units)
        return (terms, norms), norms, counts(norms, loss_sum, batch.real)

    def _add(
        self,
        blocks: list[int],
        layout: FlatLayout,
        total: Tensor,
        found: tuple[dict[int, Term], Tensor],
        factors: Tensor,
    ) -> None:
        terms, norms = found
        finite = torch.isfinite(norms).all(dim=1)
        # A factor of zero does not remove a NaN from a product. On a GPU, the host does not wait to learn of one.
        if costs_a_wait(finite) or not bool(finite.all()):
            terms = {position: term.keep(finite) for position, term in terms.items()}
        for position, out in enumerate(total.split(layout.sizes)):
            if position in terms:
                terms[position].add_to(out, factors[:, blocks[position]])

    def _recording_key(self, batch: Batch, blocks: list[int], total: Tensor) -> tuple[object, ...] | None:
        """All that the kernels of a pass depend on but the values of its tensors; None if passes are not recorded."""
        if self._of_step is None or not self.graphs.records_on(total.device):
            return None
        return shapes_of(batch), total.data_ptr(), self.precision, *blocks, *self._of_step

    def _prepare(self, network: nn.Module, batch: Batch) -> None:
        """Survey the network if its structure, its mode or its trainable parameters have changed."""
        if not batch.size:
            return
        known = self._known is not None and self._known() is network
        if not (known and self._surveyed is self._layout):
            hooked = _hooked_backwards(network)
            if hooked is not None:
                raise UnsupportedModuleError(f"{hooked} {_HOOKED}; use engine='loop'")
            structure, self._surveyed = _structure(network), self._layout
            if not (known and _are_same(structure, self._structure)):
                self._survey_anew(network, batch, structure)
        state = self.boundary.state
        device = self._parameters[0].device
        self._of_step = None
        if state is not None and self.graphs.records_on(device):
            refusal = cannot_replay(state, device)
            if refusal is not None:
                self.graphs.refuse(refusal)
            self._of_step = state, self._surveys, *computing_settings(), *map(place_of, state.read)

    def _survey_anew(self, network: nn.Module, batch: Batch, structure: list[object]) -> None:
        with PRECISIONS["fp32"].of_products():
            self._survey = Survey.of(network, batch)
        self._surveys += 1
        self._known, self._structure = ref(network), structure
        on_cpu = all(value.device.type == "cpu" for value in self._parameters)
        self._fast_chunk = _cache_friendly_chunk(self._survey) if on_cpu else None


def _constants_of_factors(clip: ClipMechanism, blocks: int) -> tuple[object, ...] | None:
    """All that ``bounded_factors`` depends on besides norms and fillers; None if it is not known or not recorded."""
    bounds = block_bounds_of(clip, blocks)
    stated = clip.constants(blocks) if speaks_for(clip, "constants", "factors") else None
    if stated is None or len(set(bounds)) > 1:  # different bounds are copied from the host
        return None
    return type(clip).factors, *bounds, *stated


def _structure(network: nn.Module) -> list[object]:
    """What decides how the calls of a network's modules are run, to be compared by identity."""
    found: list[object] = [value for value in network.parameters() if value.requires_grad]
    for module in network.modules():
        found += [module, type(module), module.training]
        if module._parameters:  # a layer, whose settings count
            found += (value for value in vars(module).values() if not isinstance(value, Tensor))
    return found


def _are_same(some: Sequence[object], others: Sequence[object]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


def _hooked_backwards(*roots: object) -> str | None:
    """Name of a module with a backward hook; None if there is none."""
    if torch_modules._global_backward_hooks or torch_modules._global_backward_pre_hooks:
        return "every module"
    for root in roots:
        for name, module in root.named_modules() if isinstance(root, nn.Module) else ():
            if module._backward_hooks or module._backward_pre_hooks:
                return f"module {name or type(module).__name__!r}"
    return None


def _cache_friendly_chunk(survey: Survey) -> int | None:
    """A power of two such that the activations, gradients and instantiated weights of a chunk fit ``CACHE_BYTES``.

    Networks with many convolution weights get larger chunks: each chunk reads all weights, which must not dominate its
    memory traffic. None if all activations are vectors: nothing is instantiated then, and matrix products are fastest
    undivided.
    """
    if survey.vectors_only:
        return None
    weights = sum(value.numel() for site in survey.sites for value in site.values if value.dim() > 2)
    per_example = 4 * (3 * survey.entries_per_example + min(weights, LARGEST_INSTANTIATED))
    exponent = round(math.log2(max(CACHE_BYTES, WEIGHT_PASSES * 4 * weights) / max(per_example, 1)))
    smallest = SMALLEST_CHUNK if SMALLEST_CHUNK * per_example <= MODERATE_BYTES else SMALLEST_CHUNK // 2
    return max(smallest, 1 << max(exponent, 0))


def _norms(terms: dict[int, Term], blocks: list[int], like: Tensor, units: int) -> Tensor:
    squared = like.new_zeros(units, max(blocks) + 1, dtype=torch.float64)
    for block in set(blocks):
        members = [term.squared_norms.double() for position, term in terms.items() if blocks[position] == block]
        if members:
            squared[:, block] = torch.stack(members).sum(0)
    return squared.sqrt_().to(like.dtype)
