"""Couplings through state that a network keeps between examples or steps."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from ..neighbours import FEATURES, Member, layered, one_more_first, one_more_last

STATE = partial(Member, kind="state", pair=one_more_first)


class FirstBatch(nn.Module):
    """Centres by the mean of the first batch: data-dependent initialisation."""

    def __init__(self):
        super().__init__()
        self.shift = None

    def forward(self, x):
        if self.shift is None:
            self.shift = x.detach().mean(0)
        return x - self.shift


class BuiltOnce(nn.Module):
    """A table created on first use, with the shape of the inputs."""

    def __init__(self):
        super().__init__()
        self.table = None

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(x.shape[1], dtype=x.dtype) / 10
        return x + self.table


class ThroughData(nn.Module):
    def __init__(self, learns=True):
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.learns = learns

    def forward(self, x):
        if self.learns:
            self.mean.data.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x - self.mean


class FrozenWeight(nn.Module):
    def __init__(self, learns=True):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(FEATURES), requires_grad=False)
        self.learns = learns

    def forward(self, x):
        if self.learns:
            self.shift.data += x.detach().mean(0)
        return x - self.shift


class OnParameter(nn.Module):
    """Keeps a mean as an attribute of a parameter."""

    def __init__(self, learns=True):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(FEATURES), requires_grad=False)
        self.scale.mean = torch.zeros(FEATURES)
        self.learns = learns

    def forward(self, x):
        if self.learns:
            self.scale.mean = 0.5 * self.scale.mean + 0.5 * x.detach().mean(0)
        return (x - self.scale.mean) * self.scale


class LastSeen(nn.Module):
    """Differences to the last example of the previous call, or only keeps that example."""

    def __init__(self, uses=True):
        super().__init__()
        self.last, self.uses = None, uses

    def forward(self, x):
        before, self.last = self.last, x.detach()[-1:]
        return x - before if self.uses and before is not None else x


class CachedByShape(nn.Module):
    def __init__(self):
        super().__init__()
        self.cache = {}

    def forward(self, x):
        return x - self.cache.setdefault(x.shape[1:], x.detach().mean(0))


MEMBERS = [
    STATE("a network centres by its first batch", coupled=layered(FirstBatch), benign=layered(BuiltOnce)),
    STATE(
        "a network writes statistics to a buffer's data",
        coupled=layered(ThroughData),
        benign=layered(lambda: ThroughData(False)),
        engine="bookkeeping",
    ),
    STATE(
        "a network writes statistics to a frozen weight's data",
        coupled=layered(FrozenWeight),
        benign=layered(lambda: FrozenWeight(False)),
        engine="bookkeeping",
    ),
    STATE(
        "a network keeps statistics on a parameter",
        coupled=layered(OnParameter),
        benign=layered(lambda: OnParameter(False)),
        engine="bookkeeping",
    ),
    STATE(
        "a network keeps the last example",
        coupled=layered(LastSeen),
        benign=layered(lambda: LastSeen(False)),
        pair=one_more_last,
    ),
    STATE("a network keeps a statistic for each shape", coupled=layered(CachedByShape), benign=layered(BuiltOnce)),
]
