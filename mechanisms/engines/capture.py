"""One forward pass with every layer watched: what went in, and where the gradient of what came out will be found."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from mechanisms.engines.axes import Axes, AxisBook
from mechanisms.engines.layers.rules import LayerRule
from mechanisms.engines.pool_first import Waiting, computed
from monitors.errors import UnsupportedModuleError

if TYPE_CHECKING:
    from mechanisms.engines.sites import Site


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
        inputs: Positional arguments, detached.
        versions: Their versions when they were recorded; a later in-place write is found by it.
        axes: Where the examples lie in each input and, last, in the output.
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
    versions: tuple[int | None, ...] = ()
    axes: Axes = field(default_factory=list)
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

    def untouched(self) -> bool:
        """Whether every recorded input still holds what the layer was given."""
        pairs = zip(self.inputs, self.versions, strict=True)
        return all(version is None or value._version == version for value, version in pairs)


class Recorder:
    """The records of one forward pass.

    Args:
        batch_size: Number of examples B.
        axes: Where the examples lie in the tensors of each call; filled while it is not ``known``.

    Attributes:
        records: One per watched call.
        roots: Outputs of which every other record's output is made: a backward pass to them comes by all records.
    """

    def __init__(self, batch_size: int, axes: AxisBook) -> None:
        self.batch_size = batch_size
        self.axes = axes
        self.records: list[Record] = []
        self.roots: list[GradientEdge] = []
        self._reached: set[Any] = set()
        self._inside = False
        self._calls: dict[str, int] = defaultdict(int)
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
        self._calls[site.name] += 1
        key = f"{site.name}:{self._calls[site.name]}"
        return site.how.run(self, site, key, original, args, kwargs)

    @contextmanager
    def aside(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Inner calls are not watched, and ``parameters`` are constants: autograd never computes their gradients."""
        _require_gradients(parameters, False)
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
            _require_gradients(parameters, True)

    def watch(
        self, site: Site, key: str, names: dict[str, int], rule: LayerRule, layer: nn.Module, inputs: Any, output: Any
    ) -> Tensor:
        """Keep the inputs of a layer and hand on its output as a tensor whose gradient will be recorded."""
        if not isinstance(output, Tensor):
            raise UnsupportedModuleError(f"layer {site.name!r} must give one tensor, got {type(output).__name__}")
        if not self.axes.known:
            self.axes.note(key, [*inputs, output])
            return output
        with torch._C.DisableTorchFunction():  # our own work is of no interest to function modes
            kept = tuple(value.detach() if isinstance(value, Tensor) else value for value in inputs)
            axes = self.axes.of(key, [*kept, output], self.batch_size)
            if axes[-1] is None:
                output = spread(output, self.batch_size)
            output = self._tapped(output)
            versions = tuple(value._version if isinstance(value, Tensor) else None for value in kept)
            record = Record(site, names, rule, layer, kept, versions, axes)
            self.records.append(record)
            output.register_hook(record.arrived)
            record.hooks = output._backward_hooks or {}
            edge = get_gradient_edge(output)
            if not _comes_from(edge.node, self._reached):
                self.roots.append(edge)
            self._reached.add(edge.node)
        watched: Tensor = output
        return watched

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


def spread(value: Tensor, batch_size: int) -> Tensor:
    """A tensor that all examples share as one row per example, so that each row gets that example's gradient alone."""
    if value.dim() > 1 and value.shape[0] == 1:
        return value.expand(batch_size, *value.shape[1:])
    return value.unsqueeze(0).expand(batch_size, *value.shape)


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
    with torch._C.DisableTorchFunction():
        for value in parameters:
            value.requires_grad_(wanted)
