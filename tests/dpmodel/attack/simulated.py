"""Pools, outputs and configurations that attack tests share."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from dpmodel.attack.evidence import Evidence, Reference
from dpmodel.attack.pool import Pool
from dpmodel.data.in_memory import InMemoryDataset

#: Few examples that a network with many weights learns by heart: their classes are random.
LEARNT = {
    "data": {"name": "synthetic", "shape": [1, 4, 4], "num_train": 60, "num_test": 75, "num_classes": 3, "noise": 9.0},
    "network": {"name": "mlp", "hidden": [64]},
    "optimizer": {"name": "SGD", "lr": 2.0},
    "privacy": {"noise": None},
    "training": {"epochs": 60, "batch_size": 30},
}


def pool_of(train, held_out, population=0, features=2, classes=2):
    total = train + held_out + population
    data = InMemoryDataset(torch.randn(total, features), torch.randint(0, classes, (total,)))
    return Pool(data, train, held_out, classes, "test", np.arange(train + held_out))


def scores_of(logits, targets):
    """Outputs for two classes in which the target's probability has these logits."""
    values = torch.as_tensor(logits, dtype=torch.float64)
    signs = torch.where(torch.as_tensor(targets) == 0, 1.0, -1.0)
    return torch.stack([signs * values, torch.zeros_like(values)], dim=1)


def evidence_of(pool, logits, references=(), included=(), network=None):
    """Evidence in which the target's probabilities have these logits, for all examples."""
    known = tuple(
        Reference(scores_of(values, pool.targets), inside) for values, inside in zip(references, included, strict=True)
    )
    found = scores_of(logits, pool.targets)
    return Evidence(pool, found, nn.CrossEntropyLoss(), lambda: network, known)
