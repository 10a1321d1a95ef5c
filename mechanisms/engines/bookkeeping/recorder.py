"""Records one isolated forward pass: the input of each watched layer, and a hook for the gradient of its output.

The gradient of a layer's parameters follows from the layer's input and the gradient of its output alone (``g' x`` for
``y = x W'``), so autograd never has to compute it, neither per example nor for the batch:

1. For the duration of a pass, each watched module (a ``Site``) gets a ``forward`` that calls ``Recorder.call``.
2. The call runs the layer on the rows of all examples with constant parameters, keeps its detached input in a
   ``Record`` and registers a hook on the output.
3. One backward pass as far as ``Recorder.roots`` visits all recorded outputs, and their hooks receive the gradients.
   Row b of each gradient belongs to example b, because the pass is isolated: no other example can reach its loss.

References:
    Goodfellow 2015, "Efficient Per-Example Gradient Computations"; Bu et al. 2023, "Differentially Private Optimization
    on Large Model at Small Cost" (book-keeping).
"""

from __future__ import annotations

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
from monitors.signatures import signature

if TYPE_CHECKING:
    from mechanisms.engines.bookkeeping.sites import Site


class _Tap(torch.autograd.Function):
    """Identity that puts a tensor into the graph without a copy, so that its gradient can be computed.

    The output of the first layer does not require a gradient: its input is data and its parameters are constants. The
    output of an autograd function requires one if any input does, hence the anchor.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor) -> Tensor:
        """Return the tensor itself."""
        del anchor
        ctx.mark_dirty(value)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The graph ends at a tap."""
        del ctx, grads
        return None, None


@dataclass(slots=True)
class Record:
    """One watched call.

    Args:
        site: Where it happened.
        flat_index: Position in the flat layout of each trained parameter, by the name that the rule uses.
        rule: The layer's rule; None for a module that ran on per-example parameters.
        layer: The layer, for the rule.
        inputs: Positional arguments, detached; the first dimension of a tensor has ``fold`` rows per example.
        fold: Rows per example.
        leading: Whether the output has two leading dimensions, (examples, rows of an example), instead of one.
        versions: Version counters of the inputs at the time of the call; they reveal later in-place writes.
        shapes: Shapes of the inputs and of the output.
        leaves: Per-example views of the parameters, in the order of ``flat_index``, if the module ran on such views.
        gradient: Gradient of the output; None until it is known, and if the loss does not depend on the output.
        hooks: Hooks on the gradient of the output: ours, then those of the user.
        on_gradient: Called with the record and the gradient as soon as the gradient is known; the record then drops its
            inputs. None: the record stores the gradient.
    """

    site: Site
    flat_index: dict[str, int]
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
    on_gradient: Callable[[Record, Tensor], None] | None = None

    def receive(self, gradient: Tensor | None) -> None:
        """Take the gradient of the output; the hook on the output."""
        if gradient is None:  # a custom autograd function after the layer returned None
            return
        if self.on_gradient is None:
            self.gradient = gradient
            return
        self.on_gradient(self, gradient)
        # Nothing reads the input again: without it, a pass holds about as much memory as one of plain training.
        self.inputs = self.versions = ()

    def let_go(self) -> None:
        """Drop all references to the pass: record and hook form a cycle, freed by garbage collection only."""
        self.inputs, self.versions, self.leaves, self.hooks = (), (), [], {}
        self.gradient = self.on_gradient = None

    def untouched(self) -> bool:
        """Whether every recorded input still has the values that the layer received.

        A detached input shares its memory with the original, so an in-place operation after the call would silently
        change the computed gradients. Autograd does not check tensors that it did not save; the version counter, which
        detached tensors share too, shows the write.
        """
        tensors = [value for value in self.inputs if isinstance(value, Tensor)]
        return all(version_of(value) == version for value, version in zip(tensors, self.versions, strict=True))


class Recorder:
    """Collects the records of one isolated forward pass.

    Args:
        batch_size: Number of examples B.

    Attributes:
        records: One per watched call.
        roots: The recorded outputs that do not depend on other recorded outputs (those of the first layers). Each other
            output lies on a path from the loss to a root, so differentiating with respect to the roots runs all hooks.
            Asking autograd for all outputs instead would keep all their gradients until the pass ends.
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
        """Route the calls of the sites through this recorder; the network is restored even after an exception."""
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
        """Run one call of a site's module and record what its gradients need."""
        if self._inside:  # the outer site already covers the parameters of this one
            return original(*args, **kwargs)
        # A deferred activation (see pool_first) is not a tensor; layers must receive tensors.
        if Waiting in map(type, (*args, *kwargs.values())):
            args, kwargs = computed((args, kwargs))
        return site.how.run(self, site, original, args, kwargs)

    @contextmanager
    def aside(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Do not watch inner calls, and keep ``parameters`` constant: autograd never computes their gradients."""
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
        flat_index: dict[str, int],
        rule: LayerRule,
        layer: nn.Module,
        function: Callable[..., Tensor],
        inputs: Sequence[Any],
        constants: Sequence[Tensor] = (),
    ) -> Tensor:
        """Run a layer that treats rows independently on the rows of all examples, and record the call.

        Args:
            site: Where the call happens.
            flat_index: Position in the flat layout of each trained parameter, by the name that the rule uses.
            rule: Computes gradients from the record.
            layer: Passed to the rule.
            function: The layer's forward pass on rows.
            inputs: The layer's arguments; tensors hold one example.
            constants: Parameters whose gradients autograd must not compute.
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
                raise UnsupportedModuleError(f"layer {site.name!r} must return one tensor, got {type(output).__name__}")
            spread = layout.spread(output)
            # Not a view: autograd would replay an in-place operation that follows (an in-place ReLU) on the base.
            if layout.each is not None:
                output = torch.ops.aten._unsafe_view(output, spread.shape)
            kept = tuple(value.detach() if isinstance(value, Tensor) else value for value in given)
            fold, leading = layout.count // self.batch_size, layout.each is not None
            record = Record(site, flat_index, rule, layer, kept, fold, leading)
            watched = self._watched(record, output)
        return example_of(watched)

    def run_isolated(
        self, site: Site, rule: LayerRule, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Run a layer that might mix rows, one example at a time, and record the call.

        The layer itself runs under ``vmap``, where it cannot see other examples. Only its finished output is gathered
        to the rows of all examples, to be recorded in the same way as that of a trusted layer.
        """
        with self.aside(site.values):
            output = original(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise UnsupportedModuleError(f"layer {site.name!r} must return one tensor, got {type(output).__name__}")
        inputs = positional(site.module, args, kwargs)
        layout = self._layout(site, inputs[0], rule.batched_dims(site.module))

        def copied(*inputs: Any) -> Tensor:
            del inputs
            # A copy: the network may write to the output, and autograd may have saved the original (as tanh does).
            return gathered.clone()

        with torch._C.DisableTorchFunction():  # bookkeeping, which function modes must not see
            gathered = layout.gather(output)
        return self.run_on_batch(site, site.flat_index, rule, site.module, copied, inputs)

    def _layout(self, site: Site, first: Tensor, batched_dims: int) -> Layout:
        """Where the rows of a layer's input lie, given the number of dimensions that one example has."""
        with torch._C.DisableTorchFunction():
            shape = first.shape
        # With fewer dimensions, the layer would mistake the dimension of the examples for features or positions.
        if len(shape) < batched_dims - 1:
            raise UnsupportedModuleError(
                f"layer {site.name!r} ({type(site.module).__name__}) needs an input of at least {batched_dims - 1} "
                f"dimensions, got {len(shape)}"
            )
        return Layout(self.batch_size, None if len(shape) < batched_dims else shape[0])

    def _watched(self, record: Record, output: Tensor) -> Tensor:
        """Return the output as a tensor whose gradient will be recorded."""
        output = self._tapped(output)  # before the versions are read: for a layer that returns its input, it is a write
        tensors = [value for value in record.inputs if isinstance(value, Tensor)]
        record.versions = tuple(map(version_of, tensors))
        record.shapes = (*(value.shape for value in tensors), output.shape)
        self.records.append(record)
        output.register_hook(record.receive)
        # The dictionary itself: a hook that the user adds later shows in it. It would run after ours and change the
        # gradient that we recorded, so ``record_backward`` refuses it.
        record.hooks = output._backward_hooks or {}
        # The edge instead of the tensor: an in-place operation after the layer moves the tensor to a new node, while
        # hook and edge stay at the output of the layer.
        edge = get_gradient_edge(output)
        if not _comes_from(edge.node, self._reached):
            self.roots.append(edge)
        self._reached.add(edge.node)
        return output

    def _tapped(self, output: Tensor) -> Tensor:
        if output._is_view():  # an in-place write to a view would disconnect the recorded edge: no gradient reaches it
            output = output.clone()
        if output.requires_grad:
            return output
        if self._anchor is None:
            self._anchor = torch.zeros((), device=output.device, requires_grad=True)
        tapped: Tensor = _Tap.apply(output, self._anchor)
        return tapped


def _comes_from(node: Any, reached: set[Any]) -> bool:
    """Whether ``node`` depends on a node in ``reached``."""
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
    """Arguments of a call in the order of ``forward``'s parameters."""
    if not kwargs:
        return args
    bound = signature(type(module).forward).bind(module, *args, **kwargs)
    return tuple(bound.arguments.values())[1:]


def _watch_forward(recorder: Recorder, site: Site) -> None:
    original = site.module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        return recorder.call(site, original, args, kwargs)

    # An attribute of the object shadows the method of its class: hooks on the module run as usual, and code that calls
    # ``module.forward`` directly is watched too. ``vars`` avoids a custom ``__setattr__``.
    vars(site.module)["forward"] = watched


def _restore(module: nn.Module, forward: Any) -> None:
    if forward is None:
        vars(module).pop("forward", None)
    else:
        vars(module)["forward"] = forward


def _require_gradients(parameters: Sequence[Tensor], wanted: bool) -> None:
    for value in parameters:
        value.requires_grad = wanted
