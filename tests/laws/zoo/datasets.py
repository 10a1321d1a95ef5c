"""Couplings in the data set: an example that counts more than once, or that appears in rows of others."""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.data import ConcatDataset, Dataset, TensorDataset

from dpmodel.data.in_memory import InMemoryDataset

from ..neighbours import Member, Training, body, one_replaced

#: Couplings in a data set cannot be ruled out; if they cannot be checked, the ledger says so.
DATA = partial(
    Member,
    kind="data set",
    pair=partial(one_replaced, count=64),
    one_sided=True,
    accepts=frozenset({"exact", "refused", "voided", "noted"}),
)


class Rows(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], self.y[row]


class Scaled(Rows):
    def __getitem__(self, row):
        return self.x[row] * 0.5, self.y[row]


class WithRowSeven(Rows):
    """MixUp with a partner by a fixed rule."""

    def __getitem__(self, row):
        return 0.5 * self.x[row] + 0.5 * self.x[7], self.y[row]


class WithTheNext(Rows):
    def __getitem__(self, row):
        return self.x[row] + self.x[(row + 1) % len(self.x)] + self.x[row - 1] + self.x[row - 2], self.y[row]


class WithTheLastRead(Rows):
    """Depends on earlier reads."""

    last = 0.0

    def __getitem__(self, row):
        self.last = 0.5 * self.last + self.x[row]
        return self.last, self.y[row]


class RunningMean(Rows):
    mean = 0.0

    def __getitem__(self, row):
        self.mean = 0.5 * self.mean + 0.5 * self.x[row]
        return self.x[row] - self.mean, self.y[row]


class Counted(Rows):
    """Counts its reads."""

    reads = 0

    def __getitem__(self, row):
        self.reads += 1
        return self.x[row], self.y[row]


class RandomPartner(Rows):
    def __getitem__(self, row):
        partners = torch.randint(len(self.x), (6,))
        return 0.5 * self.x[row] + 0.5 * self.x[partners].mean(0), self.y[row]


class Jittered(Rows):
    def __getitem__(self, row):
        return self.x[row] + 0.1 * torch.randn(self.x.shape[1:]), self.y[row]


class Repeated(Rows):
    """Eight epochs in one: the index modulo the length."""

    def __len__(self):
        return 8 * len(self.x)

    def __getitem__(self, row):
        return self.x[row % len(self.x)], self.y[row % len(self.x)]


class Flipped(Dataset):
    def __init__(self, base):
        self.base = base

    def __len__(self):
        return len(self.base)

    def __getitem__(self, row):
        x, y = self.base[row]
        return x.flip(-1), y


class CentresBatches(InMemoryDataset):
    def transform_batch(self, x):
        x = super().transform_batch(x)
        return x - x.mean(0, keepdim=True) if len(x) else x


class ScalesBatches(InMemoryDataset):
    def transform_batch(self, x):
        return super().transform_batch(x) * 0.5


def of(dataset):
    return lambda: Training(body(bias=False), dataset=dataset)


MEMBERS = [
    DATA("mixes each row with the same row", coupled=of(WithRowSeven), benign=of(Scaled)),
    DATA("adds the rows around each row", coupled=of(WithTheNext), benign=of(Rows)),
    DATA("adds the rows that were read before", coupled=of(WithTheLastRead), benign=of(Counted)),
    DATA("centres by a running mean of what was read", coupled=of(RunningMean), benign=of(Counted)),
    DATA("mixes each row with some drawn at random", coupled=of(RandomPartner), benign=of(Jittered)),
    DATA("repeats its rows", coupled=of(Repeated), benign=of(Rows)),
    DATA(
        "is concatenated with itself",
        coupled=of(lambda x, y: (lambda data: ConcatDataset([data] * 8))(TensorDataset(x, y))),
        benign=of(lambda x, y: ConcatDataset([TensorDataset(x[:9], y[:9]), TensorDataset(x[9:], y[9:])])),
    ),
    DATA(
        "is concatenated with its mirror images",
        coupled=of(lambda x, y: ConcatDataset([data := TensorDataset(x, y), Flipped(data), data, Flipped(data)])),
        benign=of(lambda x, y: Flipped(TensorDataset(x, y))),
    ),
    DATA(
        "holds copies of its rows",
        coupled=of(lambda x, y: TensorDataset(x.repeat(8, 1), y.repeat(8))),
        benign=of(TensorDataset),
    ),
    DATA("centres whole batches", coupled=of(CentresBatches), benign=of(ScalesBatches), seen=False),
]
