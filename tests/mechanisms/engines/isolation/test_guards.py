"""Forbidden user code is refused inside an isolated pass, and nowhere else."""

from __future__ import annotations

import functools
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import BaseTorchFunctionMode, TorchFunctionMode, handle_torch_function, has_torch_function_unary
from torch.utils._python_dispatch import TorchDispatchMode

from mechanisms.engines.isolation.isolated import examples_only, isolated
from monitors.errors import UnprotectedUpdateError, UnsupportedModuleError

X = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) + 0.5

GENERATOR = torch.Generator().manual_seed(0)


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Wrapped(torch.Tensor):
    @staticmethod
    def __new__(cls, plain):
        return torch.Tensor._make_wrapper_subclass(cls, plain.shape, dtype=plain.dtype)

    def __init__(self, plain):
        self.plain = plain

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*(value.plain if isinstance(value, cls) else value for value in args), **(kwargs or {}))


class Named(torch.Tensor):
    """A subclass without its own operations."""


class OwnRule(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Save nothing."""

    @staticmethod
    def backward(ctx, grad):
        return grad

    @staticmethod
    def vmap(info, in_dims, x):
        return x - x.mean(0), 0


ALIAS = OwnRule.apply


@torch.library.custom_op("dpmodel_tests::plain", mutates_args=())
def without_rule(x: torch.Tensor) -> torch.Tensor:
    return x * 2


LIBRARY = torch.library.Library("dpmodel_tests_guards", "DEF")
LIBRARY.define("composed(Tensor x) -> Tensor")
LIBRARY.impl("composed", lambda x: x * 2, "CompositeImplicitAutograd")


def seeds(x):
    torch.manual_seed(0)
    return F.dropout(x).sum()


def seeds_and_hides_it(x):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (x * torch.rand(3)).sum()


def seeds_the_generator(x):
    torch.default_generator.manual_seed(0)
    return F.dropout(x).sum()


def makes_a_generator(x):
    return (x * torch.rand(3, generator=torch.Generator().manual_seed(0))).sum()


def enters_a_dispatch_mode(x):
    with Passing():
        return x.sum()


def leaves_a_dispatch_mode_on(x):
    Passing().__enter__()
    return x.sum()


def leaves_a_function_mode_on(x):
    BaseTorchFunctionMode().__enter__()
    return x.sum()


def unwraps(x):
    return x.sum() * float(torch._C._functorch.get_unwrapped(x).max())


def unwraps_for_debugging(x):
    return torch.func.debug_unwrap(x).sum()


def hands_over_a_function(x):
    return F.triplet_margin_with_distance_loss(x, x, -x, distance_function=lambda a, b: (a - b).norm())


@functools.wraps(F.pairwise_distance)
def named_after_torch(a, b):
    return (a - b).norm()


def hands_over_a_function_named_after_torch(x):
    return F.triplet_margin_with_distance_loss(x, x, -x, distance_function=named_after_torch)


class Distances(nn.Module):
    def forward(self, a, b):
        return (a - b).norm()

    def of(self, a, b):
        return self(a, b)


def hands_over_a_module(x):
    return F.triplet_margin_with_distance_loss(x, x, -x, distance_function=Distances())


class Functions:
    @staticmethod
    def of(x):
        if has_torch_function_unary(x):
            return handle_torch_function(Functions.of, (x,), x)
        return x * 1


class Overriding(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


def autograd_function(forward):
    """Applies an autograd function; captured before any pass, as networks do."""
    methods = {"forward": forward, "setup_context": lambda *args: None, "backward": lambda ctx, grad: grad}
    attributes = {name: staticmethod(method) for name, method in methods.items()}
    return type("Written", (torch.autograd.Function,), {"generate_vmap_rule": True, **attributes}).apply


SEEDS = autograd_function(seeds_and_hides_it)
ROUNDS = autograd_function(lambda x: (x + torch.rand(3)).floor() * 0 + x)


def seeds_in_a_function(x):
    return SEEDS(x)


def rounds_by_a_function(x):
    return ROUNDS(x).sum()


@torch.jit.script
def seeded_script(x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    return x * torch.rand_like(x)


def seeds_in_a_script(x):
    with torch.random.fork_rng(devices=[]):
        return seeded_script(x).sum()


REFUSED = {
    seeds: "is seeded in the forward pass",
    seeds_and_hides_it: "is seeded in the forward pass",
    seeds_the_generator: "is seeded in the forward pass",
    makes_a_generator: "a generator is passed explicitly",
    lambda x: torch.bernoulli(x * 0, generator=GENERATOR).sum(): "a generator is passed explicitly",
    lambda x: x.clone().normal_(generator=GENERATOR).sum(): "a generator is passed explicitly",
    enters_a_dispatch_mode: "a TorchDispatchMode that is entered",
    leaves_a_dispatch_mode_on: "a TorchDispatchMode that is entered",
    leaves_a_function_mode_on: "leaves a TorchFunctionMode active",
    lambda x: (x * Wrapped(torch.ones(3))).sum(): "a tensor of type Wrapped",
    lambda x: torch.cat([x[0], Wrapped(torch.ones(3))]).sum(): "a tensor of type Wrapped",
    lambda x: ALIAS(x).sum(): "autograd function OwnRule has a custom vmap rule",
    lambda x: without_rule(x).sum(): "operator dpmodel_tests::plain has no vmap rule",
    lambda x: torch.ops.dpmodel_tests.plain(x).sum(): "operator dpmodel_tests::plain has no vmap rule",
    lambda x: torch.ops.dpmodel_tests.plain.default(x).sum(): "operator dpmodel_tests::plain has no vmap rule",
    unwraps: "get_unwrapped would reveal the values",
    hands_over_a_function: "receives a Python function",
    hands_over_a_function_named_after_torch: "receives a Python function",
    hands_over_a_module: "receives a Python function",
    lambda x: F.triplet_margin_with_distance_loss(
        x, x, -x, distance_function=Distances().of
    ).sum(): "receives a Python function",
    lambda x: torch.ops.dpmodel_tests_guards.composed(x).sum(): "operator dpmodel_tests_guards::composed has no vmap",
    lambda x: Functions.of(x).sum(): "overrides functions of torch",
    lambda x: (x * torch.ones(3).as_subclass(Overriding)).sum(): "a custom __torch_function__",
    seeds_in_a_function: "is seeded in the forward pass",
    seeds_in_a_script: "is seeded in the forward pass",
}
if hasattr(torch.func, "debug_unwrap"):
    REFUSED[unwraps_for_debugging] = "get_unwrapped would reveal the values"


@pytest.mark.parametrize(("function", "reason"), REFUSED.items(), ids=lambda value: getattr(value, "__name__", value))
def test_code_that_would_connect_examples_is_refused_with_a_reason(function, reason):
    with pytest.raises(UnsupportedModuleError, match=reason):
        isolated(function, X)
    assert torch._C._len_torch_dispatch_stack() == torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize("function", REFUSED, ids=lambda value: value.__name__)
def test_a_refusal_that_the_network_catches_is_raised_again(function):
    def catches(x):
        try:
            return function(x)
        except UnsupportedModuleError:
            return x.sum()

    with pytest.raises(UnsupportedModuleError, match=REFUSED[function]):
        isolated(catches, X)


class Counts(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def in_a_function_mode(x):
    with Counts():
        return F.relu(x).sum()


def on_a_device(x):
    with torch.device("cpu"):
        return (x + torch.zeros(3)).sum()


def draws_the_same_again(x):
    state = torch.get_rng_state()
    first = F.dropout(x)
    torch.set_rng_state(state)
    return (first - F.dropout(x)).sum() + x.sum()


def tries_another_shape(x):
    try:
        return x.expand(2, 3).t().view(-1).sum() / 2
    except RuntimeError:
        return x.expand(2, 3).t().reshape(-1).sum() / 2


ACCEPTED = [
    in_a_function_mode,
    on_a_device,
    draws_the_same_again,
    tries_another_shape,
    lambda x: (x * torch.ones(3).as_subclass(Named)).sum(),
    rounds_by_a_function,
    lambda x: F.triplet_margin_with_distance_loss(x, 0 * x, x, distance_function=nn.PairwiseDistance()) * 0 + x.sum(),
    lambda x: (x + without_rule(torch.zeros(3))).sum(),
    lambda x: (x * nn.Parameter(torch.ones(3))).sum(),
    lambda x: x.sum() + 0 * torch.rand((), generator=torch.default_generator),
]


@pytest.mark.parametrize("function", ACCEPTED, ids=lambda value: value.__name__)
def test_code_that_treats_examples_independently_is_accepted(function):
    assert torch.allclose(isolated(function, X), X.sum(1))


def test_autocast_is_restored_after_a_pass():
    def switches(x):
        torch.set_autocast_enabled("cpu", True)
        return x.sum()

    isolated(switches, X)
    assert not torch.is_autocast_enabled("cpu")


def test_a_tensor_is_printed_without_its_values():
    seen = []
    isolated(lambda x: seen.append(f"{x}") or x.sum(), X)
    assert seen == ["<tensor of one example, shape (1, 3); values hidden>"]
    assert "0." in repr(X)


def factored(x):
    try:
        return torch.linalg.cholesky(x.T @ x).sum()
    except torch.linalg.LinAlgError:
        return x.sum()


def looked_up(x):
    try:
        return F.embedding((x * 0).long() + 9, torch.ones(3, 2)).sum()
    except IndexError:
        return x.sum()


@pytest.mark.parametrize("function", [factored, looked_up])
def test_an_error_of_torch_that_the_network_catches_is_refused(function):
    with pytest.raises(UnprotectedUpdateError, match="catches an error of torch"):
        isolated(function, X)


def test_an_uncaught_error_of_torch_propagates():
    with pytest.raises(torch.linalg.LinAlgError):
        isolated(lambda x: torch.linalg.cholesky(-x.T @ x).sum(), X)


def test_generators_change_only_in_a_pass_that_draws():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    isolated(lambda x: x.sum(), X)
    assert torch.equal(torch.get_rng_state(), before)
    first, second = (isolated(lambda x: torch.rand(()) + 0 * x.sum(), X) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(isolated(lambda x: torch.rand(()) + 0 * x.sum(), X), first)


def test_replaced_code_is_refused_and_compiled_code_runs_eagerly(monkeypatch):
    compiled = torch.compile(lambda x: x.sum(), backend=lambda graph, inputs: lambda *args: (torch.zeros(()),))
    assert torch.equal(isolated(compiled, X), X.sum(1))
    original = F.linear
    monkeypatch.setattr(F, "linear", lambda x, weight, bias=None: original(x, weight, bias))
    with pytest.raises(UnsupportedModuleError, match=r"torch\.nn\.functional\.linear has been replaced"):
        isolated(lambda x: x.sum(), X)


def test_a_pass_restores_all_patches():
    for function in (unwraps, lambda x: x.sum()):
        try:
            isolated(function, X)
        except UnsupportedModuleError:
            continue
    assert torch.equal(torch.func.vmap(ALIAS)(X), X - X.mean(0))
    seen = []
    torch.func.vmap(lambda x: seen.append(torch._C._functorch.get_unwrapped(x)) or x)(X)
    assert torch.equal(seen[0], X)


def test_a_tensor_of_an_earlier_pass_is_refused_wherever_it_was_kept():
    layer, kept = nn.Linear(3, 2), []
    isolated(lambda x: kept.append(x.detach() * 2) or x.sum(), X)
    for use in (lambda x: (x + kept[0]).sum(), lambda x: torch.stack([x, kept[0]]).sum(), lambda x: kept[0].sum()):
        with pytest.raises(UnsupportedModuleError, match="an earlier pass"):
            isolated(use, X)
    kept.clear()
    assert torch.allclose(isolated(lambda x: layer(x).sum(), X), layer(X).sum(1))


def test_garbage_collection_is_restored_after_a_pass():
    before = gc.isenabled()
    isolated(lambda x: x.sum() + 0 * gc.isenabled(), X)
    assert gc.isenabled() == before
    kept = []

    def collects(x):
        kept.append(x * 2)
        gc.collect()
        return x.sum()

    isolated(collects, X)
    with pytest.raises(UnsupportedModuleError, match="an earlier pass"):
        isolated(lambda x: (x + kept[0]).sum(), X)


def test_passes_may_be_nested():
    with examples_only():
        drawn = isolated(lambda x: torch.rand(()) + 0 * x.sum(), X)
    assert len(drawn.unique()) == len(X)
    with pytest.raises(UnsupportedModuleError, match="is seeded in the forward pass"), examples_only():
        isolated(seeds, X)
