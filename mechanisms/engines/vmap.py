"""Per-example gradients of a whole batch at once, by ``torch.func.vmap`` over ``grad``."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from mechanisms.clipping import ClipMechanism, Fixed
from mechanisms.engines.base import ENGINES, Engine, PartialSum, clip_rows, group_rows
from mechanisms.engines.batch import Batch, call_network, map_tensors
from mechanisms.engines.host_copy import HostCopy
from mechanisms.engines.isolation.isolated import examples_only
from mechanisms.engines.losses import ExampleLosses, LossFunction
from mechanisms.engines.parameters import FlatLayout, hooked_parameter, slots, trainable_parameters
from mechanisms.engines.tally import counts
from mechanisms.engines.verification import disagreement
from mechanisms.units import ClippedUnit


@ENGINES.register("vmap")
class VmapEngine(Engine):
    """Vectorised per-example gradients. Memory: one gradient per example of the physical batch.

    Layers that ``torch.func`` cannot vectorise (fused recurrent layers, data-dependent control flow, in-place writes to
    tensors of the batch) are refused with PyTorch's own reason.
    """

    name: ClassVar[str] = "vmap"
    proof: ClassVar[str] = "each example is differentiated alone under torch.func.vmap"
    takes_fillers: ClassVar[bool] = True
    takes_views: ClassVar[bool] = True

    @classmethod
    def refuses(cls, network: nn.Module, loss_fn: LossFunction, unit: ClippedUnit, example: Batch) -> str | None:
        """Compare one clipped sum on ``example`` with that of the one-example loop, parameter by parameter."""
        return cls.fails(network, loss_fn, example) or disagreement(cls, network, loss_fn, example)

    @classmethod
    def fails(cls, network: nn.Module, loss_fn: LossFunction, example: Batch) -> str | None:
        """Why a vectorised gradient on ``example`` fails, or None; the result is discarded."""
        hooked = hooked_parameter(network)
        if hooked is not None:
            return f"parameter {hooked!r} has a gradient hook, which torch.func does not call"
        try:
            clip = Fixed()
            clip.start(1.0)
            cls(ClippedUnit(1, example.size)).clipped_sum(
                network, loss_fn, example.with_examples(example.x, example.y), clip
            )
            cls.run_unwatched(network, loss_fn, example)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            return f"torch.func cannot vectorise this network: {reason or type(error).__name__}"
        return None

    def partial_sum(
        self,
        network: nn.Module,
        losses: ExampleLosses,
        batch: Batch,
        clip: ClipMechanism,
        layout: FlatLayout,
        total: Tensor,
    ) -> PartialSum:
        """Compute all gradients of the chunk, then clip and add them."""
        if not batch.size:  # a chunk of empty groups
            empty = layout.zeros(batch.num_units, layout.size)
            norms = clip_rows(empty, clip, layout, total, batch.real)
            return PartialSum(norms, HostCopy(counts(norms, layout.zeros(), batch.real)))
        with self.boundary.around(batch):
            with self.boundary.user_code():
                gradients, values = example_gradients(network, losses, batch)
            norms = clip_rows(group_rows(gradients, batch, self.unit), clip, layout, total, batch.real)
            found = HostCopy(counts(norms, batch.loss_sum(values).to(total.dtype), batch.real))
            del gradients, values
        return PartialSum(norms, found)


def example_gradients(network: nn.Module, losses: ExampleLosses, batch: Batch) -> tuple[Tensor, Tensor]:
    """Gradients (B, P) and losses (B,) of each example of a non-empty batch."""
    parameters = {name: value.detach() for name, value in trainable_parameters(network).items()}
    names = {id(value): name for name, value in trainable_parameters(network).items()}
    places = slots(network)

    def loss_of(weights: dict[str, Tensor], x: Any, y: Any) -> Tensor:
        # Each slot separately: with tie_weights, functional_call leaves replacements in a module that has two names.
        values = {at: weights[names[id(v)]] if id(v) in names else v.detach() for at, v in places.items()}

        def bound(*args: Any, **kwargs: Any) -> Any:
            return functional_call(network, values, args, kwargs, tie_weights=False)

        x, y = (map_tensors(lambda t: t.unsqueeze(0), value) for value in (x, y))
        found = losses(call_network(bound, batch.rows_of(x)), batch.targets_of(y))
        return batch.mean_over_views(found).sum()

    per_example = vmap(grad_and_value(loss_of), in_dims=(None, 0, 0), randomness="different")
    with examples_only(batch.x):
        gradients, values = per_example(parameters, batch.x, batch.y)
    dtype = FlatLayout.of_parameters(parameters).dtype
    flat = torch.cat([gradients[name].reshape(batch.size, -1).to(dtype) for name in parameters], dim=1)
    return flat, values.detach()
