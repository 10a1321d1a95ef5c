"""How the calls of a watched module are run, so that per-example gradients of its parameters can be computed.

From the cheapest to the most general; ``sites`` chooses:

- ``ByRule``: the layer has a rule; its parameters are constants and its call is recorded.
- ``ByRewrite``: the module (attention, LSTM) runs as an equal composition of layers with rules.
- ``ByOwnParameters``: a module with both parameters and submodules; only its own parameters get views.
- ``ByExample``: anything else; autograd differentiates with respect to per-example views of all its parameters.

The views are leaves of shape (B, *shape) expanded from one parameter: they cost no memory, and since example b uses row
b alone, the gradient of row b is the gradient of example b. The gradients of the views do cost memory, a copy of the
parameters for each example, which the first two modes avoid.
"""

from __future__ import annotations

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
from monitors.signatures import signature

if TYPE_CHECKING:
    from mechanisms.engines.bookkeeping.sites import Site


class CallMode(Protocol):
    """How the calls of one module are run, so that per-example gradients of its parameters can be computed."""

    words: ClassVar[str]

    def run(self, recorder: Recorder, site: Site, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run one call, record it, and return its output."""


@dataclass(frozen=True)
class ByRule:
    """The layer runs unchanged; its rule computes gradients from its input and the gradient of its output.

    Args:
        rule: The rule.
        row_wise: Whether the layer is one of PyTorch's, known to treat rows independently. Its kernel then sees all
            examples at once; other layers run isolated, one example at a time.
    """

    rule: LayerRule
    row_wise: bool = False
    words: ClassVar[str] = "layer rule"

    def run(self, recorder: Recorder, site: Site, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run with constant parameters; record the input and the output."""
        if not self.row_wise:
            return recorder.run_isolated(site, self.rule, original, args, kwargs)
        inputs = positional(site.module, args, kwargs)
        return recorder.run_on_batch(site, site.flat_index, self.rule, site.module, original, inputs, site.values)


@dataclass(frozen=True)
class ByRewrite:
    """The module runs as an equal composition of linear layers and tables.

    An LSTM, for example, becomes one linear call per time step, each of which is recorded. All of them use the same
    parameters; their contributions are added before a norm is taken.
    """

    rewritten: Callable[..., Any]
    words: ClassVar[str] = "rewritten into layers with rules"

    def run(self, recorder: Recorder, site: Site, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the rewritten forward pass."""
        del original
        return self.rewritten(site.module, SiteTape(recorder, site), *args, **kwargs)


class SiteTape:
    """Gives a rewritten forward pass access to its module's parameters, and records each use of one."""

    def __init__(self, recorder: Recorder, site: Site) -> None:
        self._recorder, self._site = recorder, site

    def linear(self, x: Tensor, weight: str, bias: str | None = None) -> Tensor:
        """``x W' + b``; ``weight`` and ``bias`` are names of the module's parameters."""
        w, b = self._detached(weight), None if bias is None else self._detached(bias)
        return self._run(_LINEAR, {"weight": weight, "bias": bias}, x, lambda rows: F.linear(rows, w, b))

    def embedding(self, tokens: Tensor, weight: str, padding_idx: int | None = None) -> Tensor:
        """Rows of the table ``weight``; the row ``padding_idx`` has no gradient."""
        table = self._detached(weight)
        layer = _Table(table, padding_idx)
        return self._run(layer, {"weight": weight}, tokens, lambda rows: F.embedding(rows, table))

    def _run(
        self, layer: nn.Module, roles: dict[str, str | None], x: Tensor, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        known = self._site.flat_index
        flat_index = {role: known[name] for role, name in roles.items() if name is not None and name in known}
        if not flat_index:  # all of them are frozen
            return function(x)
        rule = isolating(LAYER_RULES[nn.Embedding if isinstance(layer, _Table) else nn.Linear])
        return self._recorder.run_on_batch(self._site, flat_index, rule, layer, function, (x,))

    def _detached(self, name: str) -> Tensor:
        value: Any = self._site.module
        for part in name.split("."):
            value = getattr(value, part)
        return value.detach()  # type: ignore[no-any-return]


class _Table(nn.Module):
    """The attributes that the embedding rule reads from its layer."""

    def __init__(self, weight: Tensor, padding_idx: int | None) -> None:
        super().__init__()
        self.weight, self.padding_idx = weight, padding_idx


#: Stands for the layer of a linear call: the rule of linear layers reads nothing from it.
_LINEAR = nn.Identity()


@dataclass(frozen=True)
class ByExample:
    """Each example has its own view of the module's parameters; autograd computes the gradients of the views."""

    words: ClassVar[str] = "vectorised over examples"

    def run(self, recorder: Recorder, site: Site, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run with per-example views; memory: one copy of the module's gradient per example."""
        del original
        leaves = _views_for_each_example(recorder, site)
        # Every slot is replaced, by the identity of what it holds: a tied parameter lies in several slots and must be
        # the same view in each of them. What is frozen is detached, so that autograd leaves it alone.
        own = dict(zip(map(id, site.values), map(example_of, leaves), strict=True))
        state = {at: own[id(v)] if id(v) in own else v.detach() for at, v in slots(site.module).items()}
        with recorder.aside(site.values), _PaddedTables():
            output = computed(functional_call(site.module, state, args, kwargs, tie_weights=False))
        recorder.records.append(Record(site, site.flat_index, leaves=leaves))
        return output


@dataclass(frozen=True)
class ByOwnParameters:
    """A module with its own parameters and submodules: the parameters become views, the submodules are sites."""

    words: ClassVar[str] = "own parameters vectorised over examples"

    def run(self, recorder: Recorder, site: Site, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run with per-example views in place of the module's own parameters.

        Unlike in ``ByExample``, the submodules stay watched and keep their rules: only entries of ``_parameters`` of
        this very module are exchanged, for the duration of the call.
        """
        leaves, places = _views_for_each_example(recorder, site), site.module._parameters
        before = {name: places[name] for name in site.flat_index}
        try:
            places.update(zip(site.flat_index, map(example_of, leaves), strict=True))  # type: ignore[arg-type]
            with _PaddedTables():
                output = original(*args, **kwargs)
        finally:
            places.update(before)
        recorder.records.append(Record(site, site.flat_index, leaves=leaves))
        return output


def _views_for_each_example(recorder: Recorder, site: Site) -> list[Tensor]:
    """Leaves of shape (B, *shape) that share the memory of the parameters."""
    size = recorder.batch_size
    with on_batch():
        return [value.detach().expand(size, *value.shape).requires_grad_() for value in site.values]


class _PaddedTables(TorchFunctionMode):
    """Stops the gradient at padding tokens of per-example tables.

    Under ``vmap``, PyTorch looks tokens up in one long table of all examples' rows, but passes ``padding_idx`` on
    unchanged: only the first example's padding row would be left without a gradient.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``; detach the rows of padding tokens."""
        del types
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if func is F.embedding:
            given = signature(F.embedding).bind(*args, **kwargs).arguments
            padding = given.get("padding_idx")
            if padding is not None:
                hidden = given["input"] == padding % len(given["weight"])
                found = torch.where(hidden.unsqueeze(-1), found.detach(), found)
        return found
