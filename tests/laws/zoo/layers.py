"""Couplings in the layers of a network."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ..neighbours import CLASSES, FEATURES, Member, Training, applying, body, one_more_first

NETWORK = partial(Member, kind="network")

PER_EXAMPLE = partial(NETWORK, engine="bookkeeping")


class Normalised(nn.Module):
    """A hand-written normalisation over the batch (0) or over the features (1), with its own weights."""

    def __init__(self, dim):
        super().__init__()
        self.dim, self.scale = dim, nn.Linear(FEATURES, FEATURES)

    def forward(self, x):
        return self.scale(
            (x - x.mean(self.dim, keepdim=True)) / (x.var(self.dim, keepdim=True, unbiased=False) + 1).sqrt()
        )


class Attention(nn.Module):
    """Attention over the first dimension, or over four parts of an example."""

    def __init__(self, over_batch):
        super().__init__()
        self.over_batch = over_batch

    def forward(self, x):
        if self.over_batch:
            return F.scaled_dot_product_attention(x, x, x)
        parts = x.unflatten(1, (4, -1))
        return F.scaled_dot_product_attention(parts, parts, parts).flatten(1)


class Sequence(nn.Module):
    """A recurrent or attention layer that mistakes the batch for time if ``batch_first`` is missing."""

    def __init__(self, batch_first, recurrent=True):
        super().__init__()
        width = FEATURES // 2
        self.mix = (
            nn.LSTM(width, width, batch_first=batch_first)
            if recurrent
            else nn.MultiheadAttention(width, 2, batch_first=batch_first)
        )
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        x = x.unflatten(1, (2, -1))
        x = self.mix(x)[0] if isinstance(self.mix, nn.LSTM) else self.mix(x, x, x)[0]
        return self.head(x.flatten(1))


class Experts(nn.Module):
    """Examples are routed to one of two experts; with a capacity, surplus examples are dropped."""

    def __init__(self, capacity):
        super().__init__()
        self.capacity = capacity
        self.gate, self.experts = nn.Linear(FEATURES, 2), nn.ModuleList(nn.Linear(FEATURES, CLASSES) for _ in range(2))

    def forward(self, x):
        weights = self.gate(x).softmax(1)
        if self.capacity:
            places = weights.argsort(0, descending=True).argsort(0)
            weights = weights * (places < self.capacity)
        return sum(weights[:, [i]] * expert(x) for i, expert in enumerate(self.experts))


def far_examples(x):
    """The mean of examples unlike this one: a layer of a graph over the batch."""
    return torch.cdist(x, x).softmax(1) @ x


def transposed(x):
    """A reshape that mixes rows."""
    return x.T.reshape(x.shape[0], -1)


def written_in_place(x):
    x = x.clone()
    x[1:] += x[0]
    return x


def indexed(x):
    return x[x[:, 0].argsort()] * 5 + x


def fft_over_batch(x):
    return torch.fft.fft(x, dim=0).real


MEMBERS = [
    PER_EXAMPLE(
        "normalises over the batch",
        coupled=lambda: Training(body(Normalised(0))),
        benign=lambda: Training(body(Normalised(1))),
    ),
    PER_EXAMPLE(
        "subtracts the mean of the batch",
        coupled=applying(lambda x: x - x.mean(0)),
        benign=applying(lambda x: x - x.mean(1, keepdim=True)),
    ),
    PER_EXAMPLE(
        "attends to other examples",
        coupled=lambda: Training(body(Attention(True))),
        benign=lambda: Training(body(Attention(False))),
    ),
    PER_EXAMPLE(
        "rolls the batch", coupled=applying(lambda x: x + x.roll(1, 0)), benign=applying(lambda x: x + x.roll(1, 1))
    ),
    PER_EXAMPLE(
        "adds up over the batch",
        pair=one_more_first,
        coupled=applying(lambda x: x.cumsum(0)),
        benign=applying(lambda x: x.cumsum(1)),
    ),
    PER_EXAMPLE(
        "sorts over the batch",
        coupled=applying(lambda x: x.sort(0).values),
        benign=applying(lambda x: x.sort(1).values),
    ),
    NETWORK(
        "orders the rows by a feature",
        coupled=applying(indexed),
        benign=applying(lambda x: x.take_along_dim(x.argsort(1), 1)),
    ),
    NETWORK(
        "keeps the largest rows of the batch",
        coupled=applying(
            lambda x: x * (x.norm(dim=1) >= x.norm(dim=1).topk(min(3, len(x))).values[-1]).float()[:, None]
        ),
        benign=applying(lambda x: x * (x >= x.topk(3, dim=1).values[:, -1:]).float()),
    ),
    NETWORK(
        "averages over other examples",
        coupled=applying(far_examples),
        benign=applying(lambda x: torch.cdist(x[:, None], torch.eye(FEATURES).expand(len(x), -1, -1)).squeeze(1)),
    ),
    PER_EXAMPLE(
        "transposes by mistake",
        coupled=applying(transposed),
        benign=applying(lambda x: x.reshape(len(x), 2, -1).transpose(1, 2).reshape(len(x), -1)),
    ),
    NETWORK(
        "adds the first row in place",
        pair=one_more_first,
        coupled=applying(written_in_place),
        benign=applying(lambda x: x.clone().add_(1.0).relu_()),
    ),
    PER_EXAMPLE(
        "transforms over the batch",
        coupled=applying(fft_over_batch),
        benign=applying(lambda x: torch.fft.fft(x, dim=1).real),
    ),
    NETWORK(
        "forgets batch_first in a recurrent layer",
        pair=one_more_first,
        coupled=lambda: Training(Sequence(False)),
        benign=lambda: Training(Sequence(True)),
    ),
    NETWORK(
        "forgets batch_first in attention",
        coupled=lambda: Training(Sequence(False, False)),
        benign=lambda: Training(Sequence(True, False)),
    ),
    NETWORK("experts have a capacity", coupled=lambda: Training(Experts(4)), benign=lambda: Training(Experts(None))),
    PER_EXAMPLE(
        "multiplies by the batch's covariance",
        coupled=applying(lambda x: x @ (x.T @ x) / len(x)),
        benign=applying(lambda x: torch.einsum("bi,bj,bj->bi", x, x, x) / 8),
    ),
]
