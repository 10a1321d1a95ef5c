"""Couplings in random code, where two equal passes always differ."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..neighbours import CLASSES, FEATURES, Apply, Member, Training, applying, body, one_more_first, one_replaced

RANDOM = partial(Member, kind="random", pair=one_replaced)


class Mixes(nn.Module):
    """With probability one half, each example is averaged with those before it, or each feature with its neighbours."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return sum(x.roll(places, self.dim) for places in range(6)) / 6 if torch.rand(()) < 0.5 else x


class MixesByPython(nn.Module):
    def forward(self, x):
        return sum(x.roll(places, 0) for places in range(6)) / 6 if self.training and random.random() < 0.5 else x


class DropsExamples(nn.Module):
    """Stochastic depth: each example skips its branch by its own coin flip."""

    def __init__(self, width):
        super().__init__()
        self.branch = nn.Linear(width, width)

    def forward(self, x):
        keep = (torch.rand(len(x), 1) < 0.8).float() if self.training else 1.0
        return x + keep * self.branch(x).tanh()


class Encoder(nn.Module):
    """Two tokens of an example through an attention layer with dropout."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(FEATURES // 2, 2, 8, dropout=0.2, batch_first=True)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(x.unflatten(1, (2, -1))).flatten(1))


def balanced(outputs, targets):
    counts = torch.bincount(targets, minlength=CLASSES)
    weights = 50.0 * counts.min() / counts.clamp(min=1)
    return (weights[targets] * F.cross_entropy(outputs, targets, reduction="none")).mean()


def weighted(outputs, targets):
    return F.cross_entropy(outputs, targets, weight=torch.arange(1.0, CLASSES + 1)) * 0.1


def of_the_mean(x):
    mask = F.dropout(torch.ones_like(x), 0.5)
    return x * mask / (x * mask).abs().mean()


def of_its_mean(x):
    mask = F.dropout(torch.ones_like(x), 0.5)
    return x * mask / (x * mask).abs().mean(1, keepdim=True).clamp(min=1e-3)


def mixup(x):
    share = float(np.random.beta(2.0, 2.0))
    return share * x + (1 - share) * sum(x[torch.randperm(len(x))] for _ in range(6))


def seeds_by_content(x):
    torch.manual_seed(int(x.abs().sum() * 1000))
    return F.dropout(x, 0.5)


def shifted_by_a_fixed_draw(x):
    generator = torch.Generator().manual_seed(3)
    return F.dropout(x + torch.randn(FEATURES, generator=generator), 0.5)


def seeded_masks(x):
    torch.manual_seed(0)
    return F.dropout(x, 0.5)


def masks_by_place(x):
    """Masks from a public seed: the mask of an example reveals its place."""
    return x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5) * 2


def one_mask(x):
    return x * (torch.rand(FEATURES, generator=torch.Generator().manual_seed(0)) < 0.5) * 2


def projected(x):
    """Fixed random features, drawn again in each call from the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return torch.tanh(x @ torch.randn(FEATURES, FEATURES))


def rate_of_the_batch(x):
    return F.dropout(x, float(torch.sigmoid(x.abs().mean() - 1)) * 0.9)


def centred_rrelu(x):
    return F.rrelu(x - x.mean(0), training=True)


MEMBERS = [
    RANDOM("scales by the mean of what a mask has left", coupled=applying(of_the_mean), benign=applying(of_its_mean)),
    RANDOM(
        "averages with other examples half of the time",
        coupled=lambda: Training(body(Mixes(0), bias=False)),
        benign=lambda: Training(body(Mixes(1), bias=False)),
        steps=5,
    ),
    RANDOM(
        "averages with other examples by a coin of Python's",
        coupled=lambda: Training(body(MixesByPython(), bias=False)),
        benign=lambda: Training(body(DropsExamples(FEATURES), bias=False)),
        steps=5,
    ),
    RANDOM(
        "weights classes by the batch, after attention with dropout",
        coupled=lambda: Training(nn.Sequential(nn.Dropout(0.1), body()), balanced),
        benign=lambda: Training(Encoder(), weighted),
    ),
    RANDOM(
        "mixes inputs by a random permutation",
        coupled=applying(mixup),
        benign=applying(lambda x: x + torch.randn_like(x)),
    ),
    RANDOM(
        "seeds the generator with its inputs",
        coupled=applying(seeds_by_content),
        benign=applying(shifted_by_a_fixed_draw),
    ),
    RANDOM(
        "seeds the generator in each call",
        coupled=applying(seeded_masks),
        benign=applying(projected),
        pair=one_more_first,
        engine="loop",
    ),
    RANDOM(
        "draws from a generator with a public seed",
        coupled=applying(masks_by_place),
        benign=applying(one_mask),
        pair=one_more_first,
        engine="loop",
    ),
    RANDOM(
        "drops at a rate that the batch decides",
        coupled=applying(rate_of_the_batch),
        benign=applying(lambda x: F.dropout(x, 0.3)),
    ),
    RANDOM(
        "adds noise of the batch's deviation",
        coupled=applying(lambda x: x + torch.randn_like(x) * x.std()),
        benign=applying(lambda x: x + torch.randn_like(x) * (x.std(1, keepdim=True) + 0.1)),
    ),
    RANDOM(
        "centres before a random activation",
        coupled=applying(centred_rrelu),
        benign=lambda: Training(body(after=[nn.RReLU()])),
    ),
    RANDOM(
        "keeps the hidden units that are largest in the batch, after dropout",
        coupled=lambda: Training(body(after=[nn.Dropout(0.5), Apply(lambda h: h / h.abs().sum(0))])),
        benign=lambda: Training(body(after=[nn.Dropout(0.5), Apply(lambda h: h / (h.abs().sum(1, keepdim=True) + 1))])),
    ),
]
