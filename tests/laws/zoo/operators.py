"""Couplings in operators of the user's, which are shown numbers wherever they are called."""

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
    """Rounds to steps of the largest entry so far, as quantisation with a running range does."""
    RANGE[0] = max(RANGE[0], float(x.abs().max()))
    return (x * 127 / RANGE[0]).round() * RANGE[0] / 127


def rounded(x):
    return (x * 16).round() / 16


for name, kernel in (("observed", observed), ("rounded", rounded)):
    LIBRARY.define(f"{name}(Tensor x) -> Tensor")
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_autograd(f"dpmodel_zoo_operators::{name}", lambda ctx, grad: grad, lib=LIBRARY)


class Calls(nn.Module):
    """Calls an operator; ``kernel`` is what it is made of."""

    def __init__(self, name, kernel):
        super().__init__()
        self.name, self.kernel = name, kernel

    def forward(self, x):
        return getattr(torch.ops.dpmodel_zoo_operators, self.name)(x)


def calling(name, kernel):
    def make():
        RANGE[0] = 4.0
        return Training(body(Calls(name, kernel), bias=False))

    return make


MEMBERS = [
    OPERATOR(
        "rounds by the largest entry so far",
        coupled=calling("observed", observed),
        benign=calling("rounded", rounded),
    ),
]
