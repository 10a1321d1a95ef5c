"""Rules of layers: per-example gradients from a layer's input and the gradient of its output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from mechanisms.engines.bookkeeping.scratch import Scratch
from mechanisms.engines.bookkeeping.unit_members import UnitMembers
from mechanisms.engines.isolation.isolated import isolated
from mechanisms.engines.isolation.rows import PLAIN
from mechanisms.engines.row_clearing import clear_rows_
from mechanisms.engines.state.python_state import PythonState
from monitors.errors import UnsupportedModuleError

if TYPE_CHECKING:
    from mechanisms.engines.bookkeeping.layers.cancellation import TermSizes


@dataclass(frozen=True)
class Call:
    """One call of a layer in the forward pass; row b of every tensor belongs to example b.

    Args:
        layer: The layer that was called.
        inputs: Its positional arguments, detached; floating tensors in the dtype of norms and sums.
        output_grad: Gradient of the summed losses with respect to its output, shape (B, ...).
        wanted: Names of the layer's parameters that are trained.
        scratch: Provides formulas with memory for large arrays.
        key: Distinguishes this layer's arrays in ``scratch`` from those of other layers.
    """

    layer: nn.Module
    inputs: tuple[Any, ...]
    output_grad: Tensor
    wanted: tuple[str, ...]
    scratch: Scratch = field(default_factory=Scratch)
    key: Hashable = None

    @property
    def rows(self) -> int:
        """Number of examples B."""
        return self.output_grad.shape[0]

    def kept(self, use: str, *shape: int) -> Tensor:
        """Memory for an array that a formula needs until the clipped sums are computed."""
        return self.scratch.empty((self.key, use), shape, self.output_grad)

    def passing(self, *shape: int) -> Tensor:
        """Memory for an array that a formula needs only while it runs."""
        return self.scratch.empty("passing", shape, self.output_grad)


@dataclass(frozen=True)
class Term:
    """Contribution of one parameter: its squared gradient norms, and its clipped sum once the factors are known.

    Args:
        squared_norms: Shape (B,).
        add: ``add(out, factors, *held)`` adds ``sum_b factor_b gradient_b`` to ``out``, a flat view of the parameter's
            entries, for factors (B,). It takes everything that depends on the examples from ``held``.
        held: Tensors whose rows belong to examples, as ``owners`` says.
        owners: The example of each row of ``held``; None: row b belongs to example b.
        overwritable: Whether ``held`` is memory that nothing else uses.
    """

    squared_norms: Tensor
    add: Callable[..., object]
    held: tuple[Tensor, ...]
    owners: Tensor | None = None
    overwritable: bool = False

    @classmethod
    def of_rows(cls, rows: Tensor, *, overwritable: bool = False) -> Term:
        """The term of instantiated gradients, shape (B, ...); ``overwritable``: see the attribute."""
        flat = rows.flatten(1) if rows.dim() > 1 else rows.unsqueeze(1)
        return cls(squared_norms(flat), _add_rows, (flat,), overwritable=overwritable)

    def add_to(self, out: Tensor, factors: Tensor) -> None:
        """Add the clipped sum to ``out``, a flat view of the parameter's entries, for factors (B,)."""
        self.add(out, factors, *self.held)

    def scaled(self, by: float) -> Term:
        """The term of gradients that are ``by`` times as large."""
        return replace(self, squared_norms=self.squared_norms * by**2, add=partial(_add_scaled, self.add, by))

    def keep(self, examples: Tensor) -> Term:
        """The same term without the examples where ``examples``, shape (B,), is False.

        Their rows are set to zero: a factor of zero would not do, since zero times NaN is NaN. If ``held`` may be
        overwritten, this term changes too.
        """
        rows = examples if self.owners is None else examples[self.owners]
        if self.overwritable:
            for value in self.held:
                clear_rows_(value, rows)
            return self

        def masked(value: Tensor) -> Tensor:
            return torch.where(rows.view(-1, *[1] * (value.dim() - 1)), value, value.new_zeros(()))

        return replace(self, held=tuple(map(masked, self.held)))


def _add_scaled(add: Callable[..., object], by: float, out: Tensor, factors: Tensor, *held: Tensor) -> None:
    add(out, factors * by, *held)


def _add_rows(out: Tensor, factors: Tensor, rows: Tensor) -> None:
    out.addmv_(rows.t(), factors)


#: Number of entries in one sum; over longer rows, the library's norm loses accuracy.
SEGMENT = 4096


def squared_norms(rows: Tensor) -> Tensor:
    """Squared L2 norms (B,) of rows (B, N), accurate to a few float32 roundings for any N, without a temporary copy."""
    whole = rows.shape[1] // SEGMENT * SEGMENT
    if rows.shape[1] <= SEGMENT:
        norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
        return norms.mul_(norms)  # square_ goes through the slower general power
    segments = rows[:, :whole].unflatten(1, (-1, SEGMENT))
    squared: Tensor = torch.linalg.vector_norm(segments, dim=2).square_().sum(1)
    if whole < rows.shape[1]:
        squared += torch.linalg.vector_norm(rows[:, whole:], dim=1).square_()
    return squared


@dataclass(frozen=True)
class Formula:
    """One exact way to compute a term.

    Args:
        name: Its name in ``explain``.
        run: Computes the term.
        cost: Estimated work, in multiply-adds of a large matrix product; the cheapest formula is used unless formulas
            are timed.
        elements: Number of entries that the formula holds until the factors are known, for the memory estimate.
    """

    name: str
    run: Callable[[], Term]
    cost: float = 0.0
    elements: float = 0.0


class LayerRule(ABC):
    """Per-example gradients of one family of layers.

    Only ``example_gradients`` is required; ``formulas`` offers cheaper ways to the same numbers, and ``join`` combines
    several calls of one layer into one.

    ``positional``: the layer treats all dimensions but the last alike, so that an example may have several rows, or its
    rows may lie in a different dimension (sequence first).
    """

    positional: ClassVar[bool] = False

    @abstractmethod
    def example_gradients(self, call: Call) -> Mapping[str, Tensor]:
        """Gradients (B, *shape of the parameter) of every wanted parameter."""

    def summed_gradients(self, call: Call, members: UnitMembers) -> Mapping[str, Tensor]:
        """Gradients (units, *shape of the parameter) of every wanted parameter, summed over each unit's examples."""
        return {name: members.summed(rows) for name, rows in self.example_gradients(call).items()}

    def unit_terms(self, call: Call, members: UnitMembers) -> Mapping[str, Term]:
        """Terms, per unit, of the wanted parameters that need no instantiated gradient; by default, there are none."""
        del call, members
        return {}

    def term_sizes(self, call: Call) -> Mapping[str, TermSizes]:
        """Sizes of the terms of the wanted parameters whose norms get a floor; by default, there are none.

        Whether a parameter has a floor must not depend on the call.
        """
        del call
        return {}

    def formulas(self, call: Call) -> Mapping[str, Sequence[Formula]]:
        """The exact formulas for each wanted parameter; by default, only instantiation."""
        gradients = self.example_gradients(call)
        return {
            name: [Formula("instantiate", partial(Term.of_rows, gradients[name]), elements=gradients[name].numel())]
            for name in call.wanted
        }

    def batched_dims(self, layer: nn.Module) -> int:
        """The fewest dimensions of an input whose first dimension counts rows; one with fewer is a single row."""
        del layer
        return 2 if self.positional else 1

    def join(self, calls: Sequence[Call]) -> Call | None:
        """Combine several calls of one layer into one with the same total gradient; None if that is not possible."""
        del calls
        return None

    def folds(self, layer: nn.Module) -> bool:
        """Whether ``folded`` supports the layer."""
        del layer
        return False

    def folded(self, call: Call, fold: int) -> Call:
        """The call with ``fold`` rows of each example as further positions, so that each example is a single row."""
        raise NotImplementedError(f"{type(self).__name__} cannot fold the rows of {type(call.layer).__name__}")

    def refuses(self, layer: nn.Module) -> str | None:
        """Why this layer has no per-example gradient with its settings; None if it has one."""
        del layer
        return None


class FunctionRule(LayerRule):
    """A rule given as one function."""

    def __init__(self, function: Callable[[Call], Mapping[str, Tensor]]) -> None:
        self._function = function

    def example_gradients(self, call: Call) -> Mapping[str, Tensor]:
        """See ``LayerRule``."""
        return self._function(call)


class IsolatedRule(LayerRule):
    """A rule from outside this library, called on one example at a time; state that it keeps is restored.

    Its ``formulas`` and ``join`` are not used: they would see the whole batch.

    Args:
        rule: The rule.
    """

    def __init__(self, rule: LayerRule) -> None:
        self._rule = rule

    @property
    def positional(self) -> bool:  # type: ignore[override]
        """See the wrapped rule."""
        return self._rule.positional

    def batched_dims(self, layer: nn.Module) -> int:
        """See the wrapped rule."""
        return self._rule.batched_dims(layer)

    def refuses(self, layer: nn.Module) -> str | None:
        """See the wrapped rule."""
        return self._rule.refuses(layer)

    def example_gradients(self, call: Call) -> Mapping[str, Tensor]:
        """Call the rule on each example as a batch of one.

        Raises:
            UnsupportedModuleError: The rule reads values, keeps state that cannot be restored, or does not return one
                gradient per example.
        """
        state = PythonState(self._rule)
        if state.unfollowed or not state.complete:
            raise UnsupportedModuleError(f"{self._named(call)} keeps state that cannot be restored after an example")
        places = [place for place, value in enumerate(call.inputs) if isinstance(value, Tensor)]

        def of_one(output_grad: Tensor, *tensors: Tensor) -> Any:
            inputs = list(call.inputs)
            for place, value in zip(places, tensors, strict=True):
                inputs[place] = value
            found = self._rule.example_gradients(Call(call.layer, tuple(inputs), output_grad, call.wanted))
            return {name: found[name] for name in call.wanted}

        try:
            found: Any = isolated(of_one, call.output_grad, *(call.inputs[place] for place in places))
        except UnsupportedModuleError as error:
            raise UnsupportedModuleError(f"{self._named(call)}: {error}") from error
        finally:
            state.restore()
        for name, value in found.items():
            if value.shape[1:2] != (1,):
                raise UnsupportedModuleError(
                    f"{self._named(call)} returns shape {tuple(value.shape[1:])} for {name!r} of one example; the "
                    "first dimension must count examples"
                )
        return {name: value.squeeze(1) for name, value in found.items()}

    def _named(self, call: Call) -> str:
        return f"the layer rule of {type(call.layer).__name__}"


def isolating(rule: LayerRule) -> LayerRule:
    """The rule itself if it is one of this library's, which treat rows independently; else an ``IsolatedRule``."""
    function = rule._function if isinstance(rule, FunctionRule) else type(rule)
    return rule if function.__module__.startswith("mechanisms.") else IsolatedRule(rule)


#: Rules by layer type; subclasses that do not override ``forward`` share the rule of their base.
LAYER_RULES: dict[type[nn.Module], LayerRule] = {}

R = TypeVar("R")


def layer_rule(*types: type[nn.Module]) -> Callable[[R], R]:
    """Decorator that registers a rule for layers of ``types``: a ``LayerRule`` subclass, or a function of a ``Call``.

    The engine compares each network with the one-example loop before it is used, so a wrong rule is refused by the
    layer's name and never trains a model. A rule sees one example at a time, as a batch of one under
    ``torch.func.vmap``; control flow that depends on values is refused.

    Args:
        types: Module classes whose ``forward`` takes tensors with one row per example.

    Example:
        >>> class Scale(nn.Module):
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.ones(width))
        ...     def forward(self, x):
        ...         return x * self.weight
        >>> @layer_rule(Scale)
        ... def scale(call):
        ...     return {"weight": (call.inputs[0] * call.output_grad).flatten(1, -2).sum(1)}
        >>> Scale in LAYER_RULES
        True
        >>> del LAYER_RULES[Scale]
    """

    def file(rule: R) -> R:
        built: LayerRule
        if isinstance(rule, type) and issubclass(rule, LayerRule):
            built = rule()
        elif callable(rule):
            built = FunctionRule(rule)
        else:
            raise TypeError(f"a layer rule must be a LayerRule subclass or a function of a Call, got {rule!r}")
        for layer_type in types:
            LAYER_RULES[layer_type] = built
        return rule

    return file


def rule_for(layer: nn.Module) -> LayerRule | None:
    """The rule of the layer's type, or of the nearest base type with the same ``forward``; see ``isolating``."""
    base = _ruled_base(layer)
    return None if base is None else isolating(LAYER_RULES[base])


def runs_torchs_forward(layer: nn.Module) -> bool:
    """Whether a layer with a rule runs PyTorch's own code, which is known to treat rows independently."""
    base = _ruled_base(layer)
    plain = all(type(value) in PLAIN for value in (*layer._parameters.values(), *layer._buffers.values()))
    return base is not None and base.__module__.startswith("torch.nn.modules.") and plain


def is_patched(layer: nn.Module) -> bool:
    """Whether a method has been replaced on the object itself.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> layer.forward = lambda x: x
        >>> is_patched(layer), is_patched(nn.Linear(1, 1))
        (True, False)
    """
    return any(callable(value) and hasattr(type(layer), name) for name, value in vars(layer).items())


def _ruled_base(layer: nn.Module) -> type[nn.Module] | None:
    if is_patched(layer):
        return None
    for base in type(layer).__mro__:
        if base in LAYER_RULES:
            same = all(getattr(type(layer), name, None) is getattr(base, name, None) for name in _COMPUTING)
            return base if same else None
    return None


#: Methods that compute the output of those layers of PyTorch that have rules.
_COMPUTING = (
    "forward",
    "_conv_forward",
    "_output_padding",
    "_get_no_batch_dim",
    "_handle_no_batch_input",
    "_apply_instance_norm",
)
