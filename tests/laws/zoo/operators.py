"""Couplings in the user's operators, which can read values in any call."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from ..neighbours import Member, Training, body, one_more_first

OPERATOR = partial(Member, kind="operator", pair=one_more_first, engine="loop")

#: The largest entry that ``observed`` has seen.
RANGE = [4.0]

LIBRARY = torch.library.Library("dpmodel_zoo_operators", "DEF")


def observed(x):
    """Rounds to steps relative to the largest entry so far, like quantisation with a running range."""
    RANGE[0] = max(RANGE[0], float(x.abs().max()))
    return (x * 127 / RANGE[0]).round() * RANGE[0] / 127


LIBRARY.define("observed(Tensor x) -> Tensor")
LIBRARY.impl("observed", observed, "CompositeExplicitAutograd")
torch.library.register_autograd("dpmodel_zoo_operators::observed", lambda ctx, grad: grad, lib=LIBRARY)


@torch.library.custom_op("dpmodel_zoo_operators::rounded", mutates_args=())
def rounded(x: torch.Tensor) -> torch.Tensor:
    return (x * 16).round() / 16


@torch.library.custom_op("dpmodel_zoo_operators::observed_too", mutates_args=())
def observed_too(x: torch.Tensor) -> torch.Tensor:
    return observed(x)


rounded.register_autograd(lambda ctx, grad: grad)
observed_too.register_autograd(lambda ctx, grad: grad)


class Calls(nn.Module):
    """Calls an operator by name."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x):
        return getattr(torch.ops.dpmodel_zoo_operators, self.name)(x)


def calling(name):
    def make():
        RANGE[0] = 4.0
        return Training(body(Calls(name), bias=False))

    return make


MEMBERS = [
    OPERATOR(
        "rounds by the largest entry so far, in a kernel of a library",
        coupled=calling("observed"),
        benign=calling("rounded"),
    ),
    OPERATOR(
        "rounds by the largest entry so far",
        coupled=calling("observed_too"),
        benign=calling("rounded"),
    ),
]
