"""Couplings in the collation of batches."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils.data import default_collate

from ..neighbours import CLASSES, FEATURES, Member, Neighbours, Training, body, bytes_appear, drawn, one_replaced

COLLATION = partial(Member, kind="collate", pair=one_replaced, one_sided=True)

#: The length of the longest series, and the maximum length of all others.
LONG, SHORT = 60, 6


def collated(function):
    """Trainings whose batches are collated by ``function``."""
    return lambda: Training(body(bias=False), collate=function)


def after(change):
    """A collation that changes the inputs of a batch."""

    def collate(rows):
        x, y = default_collate(rows)
        return change(x), y

    return collated(collate)


def each(change):
    """A collation that changes each example."""
    return collated(lambda rows: default_collate([(change(x), y) for x, y in rows]))


class Series(torch.utils.data.Dataset):
    """Series of different lengths: the last feature of a row is the length of its series."""

    def __init__(self, x, y):
        self.rows = [
            (10 * row[: FEATURES - 1].repeat(10)[: int(row[-1])], label) for row, label in zip(x, y, strict=True)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def one_long_series():
    """The neighbouring data set has a much longer series in place of one."""
    x, y = drawn()
    x[:, -1] = torch.arange(len(x)) % 3 + SHORT - 2
    others = x.clone()
    others[7, -1] = LONG
    return Neighbours((x, y), (others, y), moves=2.0)


def one_long_among_many():
    """The long series is unlikely to be among the examples of the preflight checks."""
    x, y = drawn(200)
    x[:, -1] = torch.arange(len(x)) % 3 + SHORT - 2
    others = x.clone()
    others[7, -1] = LONG
    return Neighbours((x, y), (others, y), moves=2.0)


def padded(rows):
    series = nn.utils.rnn.pad_sequence([x for x, _ in rows], batch_first=True)
    return series, torch.stack([y for _, y in rows])


def padded_to_one_length(rows):
    series, y = padded(rows)
    return nn.functional.pad(series, (0, LONG - series.shape[1])), y


def sorted_by_length(rows):
    return padded_to_one_length(sorted(rows, key=lambda row: -len(row[0])))


def padded_with_mask(rows):
    series, y = padded(rows)
    lengths = torch.tensor([len(x) for x, _ in rows])
    return series, torch.arange(series.shape[1]) < lengths[:, None], y


class MeanOfAll(nn.Module):
    """The mean over all positions of a series, including padding, and a few of its features."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 16, bias=False), nn.ReLU(), nn.Linear(16, CLASSES, bias=False))

    def forward(self, series, mask=None):
        features = self.body(series.unsqueeze(2))
        if mask is None:
            return features.mean(1)
        return (features * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class MeanOfWindow(MeanOfAll):
    """The mean over the last, or the first, 16 positions of a series, without padding."""

    def __init__(self, last):
        super().__init__()
        self.window = slice(-16, None) if last else slice(16)

    def forward(self, series, mask):
        return super().forward(series[:, self.window], mask[:, self.window])


class BalancedInTraining(MeanOfAll):
    """In training, adds the mean over all positions, or over those of the series only, after dropout."""

    def __init__(self, masked):
        super().__init__()
        self.masked, self.drop = masked, nn.Dropout(1e-4)

    def forward(self, series, mask):
        found = super().forward(self.drop(series), mask)
        return found + super().forward(series, mask if self.masked else None) if self.training else found


def of_series(collate, network=MeanOfAll):
    return lambda: Training(network(), dataset=Series, collate=collate)


def centred(x):
    return x - x.mean(0)


def scales_bytes(x):
    return x / 255 if x.max() > 1 else x


def mixed_at_random(x):
    share = float(np.random.beta(2.0, 2.0))
    return share * x + (1 - share) * sum(x[torch.randperm(len(x))] for _ in range(6))


def augmented(x):
    return x * random.uniform(0.9, 1.1) + 0.1 * torch.randn(FEATURES)


MEMBERS = [
    COLLATION(
        "pads to the longest, and the network averages over padding in training, after dropout",
        coupled=of_series(padded_with_mask, lambda: BalancedInTraining(masked=False)),
        benign=of_series(padded_with_mask, lambda: BalancedInTraining(masked=True)),
        pair=one_long_series,
        seen=False,
    ),
    COLLATION("centres the batch", coupled=after(centred), benign=each(lambda x: x - x.mean())),
    COLLATION(
        "divides by 255 if the largest entry is above 1",
        coupled=after(scales_bytes),
        benign=each(lambda x: x / 255),
        pair=bytes_appear,
    ),
    COLLATION(
        "pads to the longest, and the network averages over padding",
        coupled=of_series(padded),
        benign=of_series(padded_with_mask),
        pair=one_long_series,
    ),
    COLLATION(
        "pads to the longest, and the network reads the last positions",
        coupled=of_series(padded_with_mask, partial(MeanOfWindow, True)),
        benign=of_series(padded_with_mask, partial(MeanOfWindow, False)),
        pair=one_long_among_many,
    ),
    COLLATION(
        "mixes examples at random",
        coupled=after(mixed_at_random),
        benign=each(augmented),
        accepts=frozenset({"exact", "refused", "voided", "noted"}),
    ),
    COLLATION(
        "rolls the batch",
        coupled=after(lambda x: sum(x.roll(places, 0) for places in range(6))),
        benign=of_series(padded_to_one_length),
        pair=one_replaced,
    ),
]
