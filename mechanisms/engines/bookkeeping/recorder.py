"""What the watched layers of a network are given and give in one isolated forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from mechanisms.engines.bookkeeping.layers.rules import LayerRule
from mechanisms.engines.bookkeeping.pool_first import Waiting, computed
from mechanisms.engines.isolation.guards import require_plain
from mechanisms.engines.isolation.isolated import example_of, on_batch
from mechanisms.engines.isolation.rows import Layout
from mechanisms.engines.state.holders import version_of
from monitors.errors import UnsupportedModuleError

if TYPE_CHECKING:
    from mechanisms.engines.bookkeeping.sites import Site


class _Tap(torch.autograd.Function):
    """Identity that makes a tensor part of the graph without a copy, so that its gradient can be asked for."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor) -> Tensor:
        """The tensor itself."""
        del anchor
        ctx.mark_dirty(value)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Nothing lies before a tap."""
        del ctx, grads
        return None, None


@dataclass(slots=True)
class Record:
    """One watched call.

    Args:
        site: Where it happened.
        names: Position in the flat layout of the layer's trained parameters, by the names that the rule uses.
        rule: The layer's rule; None for a module that ran on per-example parameters.
        layer: The layer, for the rule.
        inputs: Positional arguments, detached; the first dimension of a tensor has ``fold`` rows per example.
        fold: Rows per example.
        leading: Whether the output has a dimension for the rows of an example, after that for the examples.
        versions: Versions of the inputs when they were recorded; a later in-place write is found by it.
        shapes: Of inputs and output.
        leaves: Each parameter's per-example copy, in the order of ``names``, of a module that ran on such.
        gradient: Of the output, once it is known; None where the loss does not depend on it.
        hooks: On the output's gradient: ours, and those of the user, which come after it.
        taker: Takes the gradient as soon as it is known, while it and the inputs are in the cache, and has both let go.
    """

    site: Site
    names: dict[str, int]
    rule: LayerRule | None = None
    layer: nn.Module | None = None
    inputs: tuple[Any, ...] = ()
    fold: int = 1
    leading: bool = True
    versions: tuple[int, ...] = ()
    shapes: tuple[torch.Size, ...] = ()
    leaves: list[Tensor] = field(default_factory=list)
    gradient: Tensor | None = None
    hooks: Mapping[int, Any] = field(default_factory=dict)
    taker: Callable[[Record, Tensor], None] | None = None

    def arrived(self, gradient: Tensor | None) -> None:
        """The gradient of the output is known."""
        if gradient is None:  # of a function of the user's own that passes none on
            return
        if self.taker is None:
            self.gradient = gradient
            return
        self.taker(self, gradient)
        self.inputs = self.versions = ()

    def let_go(self) -> None:
        """Hold nothing of the pass any longer; a hook and its record hold each other."""
        self.inputs, self.versions, self.leaves, self.hooks = (), (), [], {}
        self.gradient = self.taker = None

    def untouched(self) -> bool:
        """Whether every recorded input still holds what the layer was given."""
        tensors = [value for value in self.inputs if isinstance(value, Tensor)]
        return all(version_of(value) == version for value, version in zip(tensors, self.versions, strict=True))


class Recorder:
    """The records of one isolated forward pass.

    Args:
        batch_size: Number of examples B.

    Attributes:
        records: One per watched call.
        roots: Outputs of which every other record's output is made: a backward pass to them comes by all records.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.records: list[Record] = []
        self.roots: list[GradientEdge] = []
        self._reached: set[Any] = set()
        self._inside = False
        self._anchor: Tensor | None = None

    @contextmanager
    def watching(self, sites: Sequence[Site]) -> Iterator[Recorder]:
        """Sites' calls go through this recorder; afterwards the network is as it was, whatever happened."""
        before = [(site, vars(site.module).get("forward")) for site in sites]
        try:
            for site in sites:
                _watch_forward(self, site)
            yield self
        finally:
            for site, forward in before:
                _restore(site.module, forward)
                _require_gradients(site.values, True)

    def call(self, site: Site, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call of a site's module and keep what its gradients need."""
        if self._inside:
            return original(*args, **kwargs)
        if Waiting in map(type, (*args, *kwargs.values())):
            args, kwargs = computed((args, kwargs))
        return site.how.run(self, site, original, args, kwargs)

    @contextmanager
    def aside(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Inner calls are not watched, and ``parameters`` are constants: autograd never computes their gradients."""
        with on_batch():
            _require_gradients(parameters, False)
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
            with on_batch():
                _require_gradients(parameters, True)

    def run_on_batch(
        self,
        site: Site,
        names: dict[str, int],
        rule: LayerRule,
        layer: nn.Module,
        function: Callable[..., Tensor],
        inputs: Sequence[Any],
        constants: Sequence[Tensor] = (),
    ) -> Tensor:
        """Run a layer that treats every row alone on the rows of all examples, and record the call.

        Args:
            site: Where the call happens.
            names: Positions of the trained parameters by the rule's names.
            rule: Makes gradients of the record.
            layer: For the rule.
            function: The layer's forward pass on rows.
            inputs: What the layer is given, tensors of one example.
            constants: Parameters whose gradients autograd shall not compute.
        """
        require_plain((*inputs, *layer._parameters.values(), *layer._buffers.values()))
        layout = self._layout(site, inputs[0], rule.batched_dims(layer))
        given = [layout.gather(value) if isinstance(value, Tensor) else value for value in inputs]
        with on_batch():
            _require_gradients(constants, False)
            try:
                output = function(*given)
            finally:
                _require_gradients(constants, True)
            if not isinstance(output, Tensor):
                raise UnsupportedModuleError(f"layer {site.name!r} must give one tensor, got {type(output).__name__}")
            spread = layout.spread(output)
            if layout.each is not None:  # not as a view: in-place operations on views take a long way through autograd
                output = torch.ops.aten._unsafe_view(output, spread.shape)
            kept = tuple(value.detach() if isinstance(value, Tensor) else value for value in given)
            record = Record(site, names, rule, layer, kept, layout.count // self.batch_size, layout.each is not None)
            watched = self._watched(record, output)
        return example_of(watched)

    def run_isolated(
        self, site: Site, rule: LayerRule, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Run a layer of which it is not known that it treats every row alone, one example at a time, and record it."""
        with self.aside(site.values):
            output = original(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise UnsupportedModuleError(f"layer {site.name!r} must give one tensor, got {type(output).__name__}")
        inputs = positional(site.module, args, kwargs)
        layout = self._layout(site, inputs[0], rule.batched_dims(site.module))

        def copied(*inputs: Any) -> Tensor:
            del inputs  # a copy: operations of the layer may need their result as it is for the backward pass
            return gathered.clone()

        with torch._C.DisableTorchFunction():
            gathered = layout.gather(output)
        return self.run_on_batch(site, site.parameters, rule, site.module, copied, inputs)

    def _layout(self, site: Site, first: Tensor, batched_dims: int) -> Layout:
        """Where the rows of a layer's input lie, by the number of dimensions that it has of one example."""
        with torch._C.DisableTorchFunction():
            shape = first.shape
        if len(shape) < batched_dims - 1:  # more of them in the batch would make the examples something else than rows
            raise UnsupportedModuleError(
                f"layer {site.name!r} ({type(site.module).__name__}) is given {len(shape)} dimensions, and needs at "
                f"least {batched_dims - 1}"
            )
        return Layout(self.batch_size, None if len(shape) < batched_dims else shape[0])

    def _watched(self, record: Record, output: Tensor) -> Tensor:
        """The output as a tensor whose gradient will be recorded."""
        output = self._tapped(output)
        tensors = [value for value in record.inputs if isinstance(value, Tensor)]
        record.versions = tuple(map(version_of, tensors))
        record.shapes = (*(value.shape for value in tensors), output.shape)
        self.records.append(record)
        output.register_hook(record.arrived)
        record.hooks = output._backward_hooks or {}
        edge = get_gradient_edge(output)
        if not _comes_from(edge.node, self._reached):
            self.roots.append(edge)
        self._reached.add(edge.node)
        return output

    def _tapped(self, output: Tensor) -> Tensor:
        if output._is_view():  # an in-place write to a view would leave the recorded edge behind
            output = output.clone()
        if output.requires_grad:
            return output
        if self._anchor is None:
            self._anchor = torch.zeros((), device=output.device, requires_grad=True)
        tapped: Tensor = _Tap.apply(output, self._anchor)
        return tapped


def _comes_from(node: Any, reached: set[Any]) -> bool:
    """Whether a node of the graph is made of one of those that are ``reached``."""
    ahead, seen = [node], {node}
    while ahead:
        for source, _ in ahead.pop().next_functions:
            if source in reached:
                return True
            if source is not None and source not in seen:
                seen.add(source)
                ahead.append(source)
    return False


def positional(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a call in the order of ``forward``."""
    if not kwargs:
        return args
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    return tuple(bound.arguments.values())[1:]


def _watch_forward(recorder: Recorder, site: Site) -> None:
    original = site.module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        return recorder.call(site, original, args, kwargs)

    vars(site.module)["forward"] = watched


def _restore(module: nn.Module, forward: Any) -> None:
    if forward is None:
        vars(module).pop("forward", None)
    else:
        vars(module)["forward"] = forward


def _require_gradients(parameters: Sequence[Tensor], wanted: bool) -> None:
    for value in parameters:
        value.requires_grad = wanted
