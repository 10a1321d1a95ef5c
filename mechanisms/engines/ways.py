"""Three ways to watch a module: by its layer's rule, rewritten into layers with rules, or example by example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from mechanisms.engines.capture import Record, Recorder, positional
from mechanisms.engines.layers.rules import LAYER_RULES, LayerRule
from mechanisms.engines.parameters import slots
from mechanisms.engines.pool_first import computed
from monitors.errors import UnsupportedModuleError

if TYPE_CHECKING:
    from mechanisms.engines.axes import Axes, Axis
    from mechanisms.engines.sites import Site


class Way(Protocol):
    """How the calls of one module are run so that per-example gradients of its parameters can be had."""

    words: ClassVar[str]

    def run(
        self, recorder: Recorder, site: Site, key: str, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """The output of one call, recorded."""


@dataclass(frozen=True)
class ByRule:
    """The layer runs as it is; its rule makes gradients from its input and output gradient."""

    rule: LayerRule
    words: ClassVar[str] = "layer rule"

    def run(
        self, recorder: Recorder, site: Site, key: str, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Run with constant parameters and keep inputs and output."""
        with recorder.aside(site.values):
            output = original(*args, **kwargs)
        inputs = positional(site.module, args, kwargs)
        return recorder.watch(site, key, site.parameters, self.rule, site.module, inputs, output)


@dataclass(frozen=True)
class ByRewrite:
    """The module runs as an equal composition of linear layers and tables."""

    rewritten: Callable[..., Any]
    words: ClassVar[str] = "rewritten into layers with rules"

    def run(
        self, recorder: Recorder, site: Site, key: str, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Run the rewritten forward pass."""
        del original
        return self.rewritten(site.module, SiteTape(recorder, site, key), *args, **kwargs)


class SiteTape:
    """The parameters of one rewritten module, watched where they are used."""

    def __init__(self, recorder: Recorder, site: Site, key: str) -> None:
        self._recorder, self._site, self._key = recorder, site, key

    def linear(self, x: Tensor, weight: str, bias: str | None = None) -> Tensor:
        """``x W' + b``; ``weight`` and ``bias`` are names of the module's parameters."""
        w, b = self._detached(weight), None if bias is None else self._detached(bias)
        return self._watch(_LINEAR, {"weight": weight, "bias": bias}, x, F.linear(x, w, b))

    def embedding(self, tokens: Tensor, weight: str, padding_idx: int | None = None) -> Tensor:
        """Rows of the table called ``weight``; the row ``padding_idx`` has no gradient."""
        table = self._detached(weight)
        layer = _Table(table, padding_idx)
        return self._watch(layer, {"weight": weight}, tokens, F.embedding(tokens, table))

    def _watch(self, layer: nn.Module, roles: dict[str, str | None], x: Tensor, output: Tensor) -> Tensor:
        known = self._site.parameters
        names = {role: known[name] for role, name in roles.items() if name is not None and name in known}
        if not names:
            return output
        rule = LAYER_RULES[nn.Embedding if isinstance(layer, _Table) else nn.Linear]
        key = f"{self._key}:{roles['weight']}"
        return self._recorder.watch(self._site, key, names, rule, layer, (x,), output)

    def _detached(self, name: str) -> Tensor:
        value: Any = self._site.module
        for part in name.split("."):
            value = getattr(value, part)
        return value.detach()  # type: ignore[no-any-return]


class _Table(nn.Module):
    """What the embedding rule asks of its layer."""

    def __init__(self, weight: Tensor, padding_idx: int | None) -> None:
        super().__init__()
        self.weight, self.padding_idx = weight, padding_idx


_LINEAR = nn.Identity()
_TENSOR = object()


@dataclass(frozen=True)
class ByExample:
    """The module runs vectorised over examples, each on its own view of the parameters; autograd does the rest."""

    words: ClassVar[str] = "vectorised over examples"

    def run(
        self, recorder: Recorder, site: Site, key: str, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Run under ``vmap``; memory is one copy of the module's gradient per example."""
        values, spec = tree_flatten((args, kwargs))
        if not recorder.axes.known:
            with recorder.aside(site.values):
                output = original(*args, **kwargs)
            recorder.axes.note(f"{key}:in", values)
            recorder.axes.note(f"{key}:out", [part for part in tree_flatten(output)[0] if isinstance(part, Tensor)])
            return output
        size = recorder.batch_size
        axes = recorder.axes.of(f"{key}:in", values, size)
        out_axes = recorder.axes.known_of(f"{key}:out")
        if out_axes is None:
            raise UnsupportedModuleError(f"module {site.name!r} is called more often than in the trial pass")
        leaves = [value.detach().expand(size, *value.shape).requires_grad_() for value in site.values]
        runner = _Example(site, spec)
        with recorder.aside(site.values):
            flat = vmap(runner, in_dims=(0, *map(_dim, axes)), out_dims=_out_dims(out_axes), randomness="different")(
                leaves, *[_divided(value, axis, size) for value, axis in zip(values, axes, strict=True)]
            )
        recorder.records.append(Record(site, site.parameters, leaves=leaves))
        merged = iter([_merged(value, axis) for value, axis in zip(flat, out_axes, strict=True)])
        outputs = [next(merged) if constant is _TENSOR else constant for constant in runner.constants]
        return tree_unflatten(outputs, runner.output_spec)  # type: ignore[arg-type]


class _Example:
    """One example through the module, with its own parameters."""

    def __init__(self, site: Site, spec: TreeSpec) -> None:
        self.site, self.spec = site, spec
        self.output_spec: TreeSpec | None = None
        self.constants: list[Any] = []
        self.places = slots(site.module)

    def __call__(self, parameters: list[Tensor], *values: Any) -> tuple[Any, ...]:
        args, kwargs = tree_unflatten(list(values), self.spec)
        own = dict(zip(map(id, self.site.values), parameters, strict=True))
        state = {at: own[id(value)] if id(value) in own else value.detach() for at, value in self.places.items()}
        output = computed(functional_call(self.site.module, state, args, kwargs, tie_weights=False))
        flat, self.output_spec = tree_flatten(output)
        self.constants = [_TENSOR if isinstance(part, Tensor) else part for part in flat]
        return tuple(part for part in flat if isinstance(part, Tensor))


def _out_dims(axes: Axes) -> tuple[int, ...]:
    return tuple(0 if axis is None else axis.dim for axis in axes)


def _dim(axis: Axis | None) -> int | None:
    return None if axis is None else axis.dim


def _divided(value: Any, axis: Axis | None, size: int) -> Any:
    return value if axis is None else value.unflatten(axis.dim, (size, axis.fold))


def _merged(value: Tensor, axis: Axis | None) -> Tensor:
    if axis is not None:
        return value.flatten(axis.dim, axis.dim + 1)
    return value.flatten(0, 1) if value.dim() > 1 and value.shape[1] == 1 else value
