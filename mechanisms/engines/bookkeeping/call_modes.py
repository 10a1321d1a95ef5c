"""Ways to watch a module: by its layer's rule, rewritten into layers with rules, or example by example."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from mechanisms.engines.bookkeeping.layers.rules import LAYER_RULES, LayerRule, isolating
from mechanisms.engines.bookkeeping.pool_first import computed
from mechanisms.engines.bookkeeping.recorder import Record, Recorder, positional
from mechanisms.engines.isolation.isolated import example_of, on_batch
from mechanisms.engines.parameters import slots

if TYPE_CHECKING:
    from mechanisms.engines.bookkeeping.sites import Site


class Way(Protocol):
    """How the calls of one module are run so that per-example gradients of its parameters can be had."""

    words: ClassVar[str]

    def run(self, recorder: Recorder, site: Site, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The output of one call, recorded."""


@dataclass(frozen=True)
class ByRule:
    """The layer runs as it is; its rule makes gradients from its input and output gradient.

    Args:
        rule: The rule.
        row_wise: Whether the layer is one of PyTorch's, known to treat every row alone; others run isolated.
    """

    rule: LayerRule
    row_wise: bool = False
    words: ClassVar[str] = "layer rule"

    def run(self, recorder: Recorder, site: Site, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run with constant parameters and keep inputs and output."""
        if not self.row_wise:
            return recorder.run_isolated(site, self.rule, original, args, kwargs)
        inputs = positional(site.module, args, kwargs)
        return recorder.run_on_batch(site, site.parameters, self.rule, site.module, original, inputs, site.values)


@dataclass(frozen=True)
class ByRewrite:
    """The module runs as an equal composition of linear layers and tables."""

    rewritten: Callable[..., Any]
    words: ClassVar[str] = "rewritten into layers with rules"

    def run(self, recorder: Recorder, site: Site, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the rewritten forward pass."""
        del original
        return self.rewritten(site.module, SiteTape(recorder, site), *args, **kwargs)


class SiteTape:
    """The parameters of one rewritten module, watched where they are used."""

    def __init__(self, recorder: Recorder, site: Site) -> None:
        self._recorder, self._site = recorder, site

    def linear(self, x: Tensor, weight: str, bias: str | None = None) -> Tensor:
        """``x W' + b``; ``weight`` and ``bias`` are names of the module's parameters."""
        w, b = self._detached(weight), None if bias is None else self._detached(bias)
        return self._run(_LINEAR, {"weight": weight, "bias": bias}, x, lambda rows: F.linear(rows, w, b))

    def embedding(self, tokens: Tensor, weight: str, padding_idx: int | None = None) -> Tensor:
        """Rows of the table called ``weight``; the row ``padding_idx`` has no gradient."""
        table = self._detached(weight)
        layer = _Table(table, padding_idx)
        return self._run(layer, {"weight": weight}, tokens, lambda rows: F.embedding(rows, table))

    def _run(
        self, layer: nn.Module, roles: dict[str, str | None], x: Tensor, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        known = self._site.parameters
        names = {role: known[name] for role, name in roles.items() if name is not None and name in known}
        if not names:
            return function(x)
        rule = isolating(LAYER_RULES[nn.Embedding if isinstance(layer, _Table) else nn.Linear])
        return self._recorder.run_on_batch(self._site, names, rule, layer, function, (x,))

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


@dataclass(frozen=True)
class ByExample:
    """The module runs on parameters of which each example has a view of its own; autograd does the rest."""

    words: ClassVar[str] = "vectorised over examples"

    def run(self, recorder: Recorder, site: Site, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run with per-example parameters; memory is one copy of the module's gradient per example."""
        del original
        leaves = _views_for_each_example(recorder, site)
        own = dict(zip(map(id, site.values), map(example_of, leaves), strict=True))
        state = {at: own[id(v)] if id(v) in own else v.detach() for at, v in slots(site.module).items()}
        with recorder.aside(site.values), _PaddedTables():
            output = computed(functional_call(site.module, state, args, kwargs, tie_weights=False))
        recorder.records.append(Record(site, site.parameters, leaves=leaves))
        return output


@dataclass(frozen=True)
class ByOwnParameters:
    """A module with parameters of its own around others: examples have views of them, the others are sites."""

    words: ClassVar[str] = "own parameters vectorised over examples"

    def run(self, recorder: Recorder, site: Site, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run with per-example views in place of the module's own parameters."""
        leaves, places = _views_for_each_example(recorder, site), site.module._parameters
        before = {name: places[name] for name in site.parameters}
        try:
            places.update(zip(site.parameters, map(example_of, leaves), strict=True))  # type: ignore[arg-type]
            with _PaddedTables():
                output = original(*args, **kwargs)
        finally:
            places.update(before)
        recorder.records.append(Record(site, site.parameters, leaves=leaves))
        return output


def _views_for_each_example(recorder: Recorder, site: Site) -> list[Tensor]:
    """Leaves (B, *shape) that share the memory of the parameters."""
    size = recorder.batch_size
    with on_batch():
        return [value.detach().expand(size, *value.shape).requires_grad_() for value in site.values]


class _PaddedTables(TorchFunctionMode):
    """A table of each example's own has no gradient at the padding token, which PyTorch forgets under ``vmap``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let no gradient pass where there is padding."""
        del types
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if func is F.embedding:
            given = inspect.signature(F.embedding).bind(*args, **kwargs).arguments
            padding = given.get("padding_idx")
            if padding is not None:
                hidden = given["input"] == padding % len(given["weight"])
                found = torch.where(hidden.unsqueeze(-1), found.detach(), found)
        return found
