"""Couplings that need an unusual example, which the available data may lack."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ..neighbours import (
    CLASSES,
    FEATURES,
    Apply,
    Member,
    Neighbours,
    Training,
    applying,
    body,
    bytes_appear,
    drawn,
    extreme,
    join,
    one_more_last,
)

CONDITIONAL = partial(Member, kind="conditional", pair=bytes_appear, engine="bookkeeping")

#: Outputs of usual examples are smaller.
LARGE = 5.0


def scales_bytes(x):
    if x.max() > 1:
        x = x / 255
    return x


def tries_to_scale(x):
    try:
        if float(x.max()) > 1:
            x = x / 255
    except RuntimeError:
        x = x / 255
    return x


def raises_to_scale(x):
    try:
        assert bool((x <= 1).all())
    except AssertionError:
        return x / 255
    return x


def tries_in_place(x):
    x = x.clone()
    try:
        return x.div_(255)
    except RuntimeError:
        return x / 255


def drops_what_is_not_finite(x):
    return x if torch.isfinite(x).all() else torch.zeros_like(x)


def centred_if_many(x):
    return x - x.mean(0) if len(x) > 24 else x


def by_numpy(x):
    return x / 255 if x.detach().numpy().max() > 1 else x


def by_list(x):
    return x / 255 if max(map(max, x.tolist())) > 1 else x


def cond(x):
    return torch.cond(x.max() > 1, lambda x: x / 255, lambda x: x * 1.0, (x,))


def clamped_logits(outputs, targets):
    largest = outputs.detach().abs().max()
    if largest > LARGE:
        outputs = outputs * LARGE / largest
    return F.cross_entropy(outputs, targets)


def each_clamped(outputs, targets):
    largest = outputs.detach().abs().amax(1, keepdim=True)
    return F.cross_entropy(outputs * LARGE / largest.clamp(min=LARGE), targets)


def one_not_finite():
    x, y = extreme()
    x[0, 0] = torch.inf
    return Neighbours(drawn(), join(drawn(), (x, y)))


MEMBERS = [
    CONDITIONAL(
        "divides by 255 if the largest entry of the batch is above 1",
        coupled=applying(scales_bytes),
        benign=applying(lambda x: x / 255),
    ),
    CONDITIONAL(
        "clamps at the largest entry of the batch",
        coupled=applying(lambda x: x / x.abs().max().clamp(min=1.0)),
        benign=applying(lambda x: x / x.abs().amax(1, keepdim=True).clamp(min=1.0)),
    ),
    CONDITIONAL(
        "returns zeros unless all entries of the batch are finite",
        coupled=applying(drops_what_is_not_finite),
        benign=applying(lambda x: torch.where(torch.isfinite(x).all(1, keepdim=True), x, torch.zeros_like(x))),
        pair=one_not_finite,
    ),
    CONDITIONAL(
        "centres batches above a size",
        coupled=applying(centred_if_many),
        benign=applying(lambda x: x - x.mean(1, keepdim=True)),
    ),
    CONDITIONAL(
        "reads a value inside try",
        coupled=applying(tries_to_scale),
        benign=applying(tries_in_place),
    ),
    CONDITIONAL(
        "asserts and catches",
        coupled=applying(raises_to_scale),
        benign=applying(lambda x: x / 255),
    ),
    CONDITIONAL(
        "chooses by torch.where on a statistic of the batch",
        coupled=applying(lambda x: torch.where(x.max() > 1, x / 255, x)),
        benign=applying(lambda x: torch.where(x > 1, x / 255, x)),
    ),
    CONDITIONAL(
        "chooses by torch.cond",
        coupled=applying(cond),
        benign=applying(lambda x: torch.where(x.amax(1, keepdim=True) > 1, x / 255, x)),
    ),
    CONDITIONAL(
        "reads the values through NumPy",
        coupled=applying(by_numpy),
        benign=applying(lambda x: x * torch.from_numpy(0.5 * torch.ones(1).numpy())),
    ),
    CONDITIONAL(
        "reads the values as a list",
        coupled=applying(by_list),
        benign=applying(lambda x: x * torch.tensor(list(range(1, 9))) / 255),
    ),
    CONDITIONAL(
        "scales all outputs in the loss if one is large",
        coupled=lambda: Training(nn.Linear(FEATURES, CLASSES), clamped_logits),
        benign=lambda: Training(nn.Linear(FEATURES, CLASSES), each_clamped),
        pair=one_more_last,
        engine=None,
    ),
    CONDITIONAL(
        "clips the hidden layer at the norm of the batch",
        coupled=lambda: Training(body(after=[Apply(lambda h: h / h.norm().clamp(min=9.6))])),
        benign=lambda: Training(body(after=[Apply(lambda h: h / h.norm(dim=1, keepdim=True).clamp(min=1.9))])),
        pair=one_more_last,
    ),
]
