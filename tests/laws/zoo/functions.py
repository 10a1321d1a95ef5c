"""Couplings in code that PyTorch's functions call: autograd functions, callables, tensor subclasses."""

from __future__ import annotations

import types
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import default_collate

from ..neighbours import FEATURES, Apply, Member, Training, applying, body, layered, one_more_first

FUNCTION = partial(Member, kind="function", pair=one_more_first)


def covariance(x):
    """A matrix for each example; not positive definite for the one with large entries."""
    return torch.eye(3) * (10 - x.detach().abs().amax(-1))[..., None, None]


def factor(matrix):
    try:
        return torch.linalg.cholesky(matrix)
    except torch.linalg.LinAlgError:
        return torch.zeros_like(matrix)


def factor_each(matrix):
    found, failed = torch.linalg.cholesky_ex(matrix)
    return torch.where(failed[..., None, None] > 0, torch.zeros_like(matrix), found)


def weighed(x, factored):
    """The inputs of an example, times a number computed from its factor."""
    return x * (factored.sum((-1, -2))[..., None] - 5)


def autograd_function(forward, backward=lambda ctx, grad: grad):
    """A function of one tensor, for which PyTorch generates the vmap rule."""
    methods = {"forward": forward, "setup_context": lambda ctx, inputs, output: None, "backward": backward}
    attributes = {name: staticmethod(method) for name, method in methods.items()}
    return type("Written", (torch.autograd.Function,), {"generate_vmap_rule": True, **attributes})


def factored_by(factorise):
    function = autograd_function(factorise)
    return applying(lambda x: weighed(x, function.apply(covariance(x))))


class Backwards(nn.Module):
    """The identity; its gradient is weighted by a factor of the input."""

    def __init__(self, factorise):
        super().__init__()

        def keep(ctx, inputs, output):
            ctx.save_for_backward(inputs[1])

        function = autograd_function(
            lambda h, x: h * 1, lambda ctx, grad: (weighed(grad, factorise(covariance(ctx.saved_tensors[0]))), None)
        )
        function.setup_context = staticmethod(keep)
        self.hidden, self.function = nn.Linear(FEATURES, FEATURES, bias=False), function

    def forward(self, x):
        return self.function.apply(self.hidden(x), x)


def seeded(x):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.floor(x + torch.rand_like(x))


def nearest(x):
    return torch.floor(x + 0.5)


def dithered(function, scripted=False):
    rounding = function if scripted else autograd_function(function).apply
    return lambda: Training(body(after=[nn.Dropout(1e-4), Rounds(rounding)], bias=False))


class Rounds(nn.Module):
    def __init__(self, rounding):
        super().__init__()
        self.rounding = rounding

    def forward(self, x):
        return x + self.rounding(x.detach()) if self.training else x


@torch.jit.script
def draws_from_seed(x: torch.Tensor, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.rand_like(x)


@torch.jit.script
def nearest_by_script(x: torch.Tensor) -> torch.Tensor:
    return torch.floor(x + 0.5)


def seeded_by_script(x):
    with torch.random.fork_rng(devices=[]):
        return torch.floor(x + draws_from_seed(x, 0))


class Distance(nn.Module):
    """A distance weighted by a factor of the second input."""

    def __init__(self, factorise):
        super().__init__()
        self.factorise = factorise

    def forward(self, one, other):
        return (one - other).square().sum(-1) * (1 + self.factorise(covariance(other)).sum((-1, -2)))


class Apart(nn.Module):
    """Inputs weighted by their distance to themselves, with a distance function."""

    def __init__(self, distance):
        super().__init__()
        self.distance = distance

    def forward(self, x):
        apart = F.triplet_margin_with_distance_loss(
            x, x * 0.5, x, distance_function=self.distance, margin=100.0, reduction="none"
        )
        return x * (apart[:, None] / 100)


class Factoring(torch.Tensor):
    """A tensor whose class catches errors."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return factor(*args) if func is torch.linalg.cholesky_ex else func(*args, **(kwargs or {}))


def of_class(kind):
    def weighed_by_class(x):
        found = torch.linalg.cholesky_ex(covariance(x).as_subclass(kind))
        return weighed(x, (found if kind is Factoring else found.L).as_subclass(torch.Tensor))

    return applying(weighed_by_class)


class Convolves(nn.Module):
    """A convolution with a method replaced on the object."""

    def __init__(self, dim):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

        def centred(conv, x, weight, bias):
            found = F.conv1d(x, weight, bias, padding=1)
            return found - found.mean(dim, keepdim=True)

        self.conv._conv_forward = types.MethodType(centred, self.conv)

    def forward(self, x):
        return x + self.conv(x[:, None])[:, 0]


def leaves_autocast_on(x):
    torch.set_autocast_enabled("cpu", True)
    return x


def in_autocast(x):
    with torch.autocast("cpu"):
        return x * 1.0


def innermost(items):
    """A batch whose examples are interleaved in memory, as after padding and transposing."""
    x, y = default_collate(items)
    return x.t().contiguous().t(), y


def placed(function):
    return lambda: Training(body(Apply(function), bias=False), collate=innermost)


def shown_numbers(function):
    """Control flow that depends on a value, which only engine ``loop`` allows."""
    return applying(lambda x: function(x) if float(x.detach().abs().max()) < 1e9 else x)


MEMBERS = [
    FUNCTION(
        "reads memory by address",
        coupled=placed(lambda x: torch.cat([x.as_strided((1, 4), (FEATURES, 1)), x[:, 4:]], 1)),
        benign=placed(lambda x: torch.cat([x.unfold(1, 4, 4)[:, 0], x[:, 4:]], 1)),
        seen=False,
    ),
    FUNCTION(
        "reads memory from its beginning",
        coupled=shown_numbers(lambda x: x * x.as_strided(x.shape, x.stride(), 0)),
        benign=shown_numbers(lambda x: x * x.as_strided(x.shape, x.stride())),
        seen=False,
        engine="loop",
    ),
    FUNCTION(
        "catches an error in an autograd function",
        coupled=factored_by(factor),
        benign=factored_by(factor_each),
        one_sided=True,
    ),
    FUNCTION(
        "catches an error in the backward pass of an autograd function",
        coupled=layered(lambda: Backwards(factor)),
        benign=layered(lambda: Backwards(factor_each)),
        one_sided=True,
        seen=False,
    ),
    FUNCTION(
        "seeds its rounding in an autograd function",
        coupled=dithered(seeded),
        benign=dithered(nearest),
        seen=False,
    ),
    FUNCTION(
        "seeds its rounding in a script",
        coupled=dithered(seeded_by_script, scripted=True),
        benign=dithered(nearest_by_script, scripted=True),
        seen=False,
    ),
    FUNCTION(
        "catches an error in a distance function",
        coupled=layered(lambda: Apart(Distance(factor))),
        benign=layered(lambda: Apart(nn.PairwiseDistance())),
        one_sided=True,
    ),
    FUNCTION(
        "catches an error in a class of tensors",
        coupled=of_class(Factoring),
        benign=of_class(torch.Tensor),
        one_sided=True,
    ),
    FUNCTION(
        "replaces a method of a convolution",
        coupled=layered(lambda: Convolves(0)),
        benign=layered(lambda: Convolves(2)),
    ),
    FUNCTION(
        "leaves autocast on",
        coupled=applying(leaves_autocast_on),
        benign=applying(in_autocast),
        one_sided=True,  # engines are compared within a tolerance, which some data exceed in 16 bits
        seen=False,
        engine="bookkeeping",
    ),
]
