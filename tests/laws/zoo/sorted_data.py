"""Couplings among neighbouring rows of the data, so that the sums of two halves of a batch add up."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from ..neighbours import CLASSES, FEATURES, Member, Neighbours, applying, extreme, under

SORTED = partial(Member, kind="sorted data")

ROWS = 64


def sorted_by_class() -> Neighbours:
    """Negatives first, then positives; the neighbouring data set has a different last row."""
    x = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(1))
    y = (torch.arange(ROWS) >= ROWS // 2).long()
    others = x.clone()
    others[-1:] = extreme()[0]
    return Neighbours((x, y), (others, y), moves=2.0)


def sorted_by_session() -> Neighbours:
    """The first feature is the session number of a row; the first four rows have different sessions."""
    rows = sorted_by_class()
    sessions = torch.cat([torch.arange(4), 4 + torch.arange(ROWS - 4) // 30]).float()
    for x in (rows.rows[0], rows.others[0]):
        x[:, 0] = sessions
    return rows


def to_the_centre_of_positives(outputs, targets):
    loss = F.cross_entropy(outputs, targets)
    positive = targets == 1
    if positive.any():
        loss = loss + 3 * (outputs[positive] - outputs[positive].mean(0)).square().sum() / len(targets)
    return loss


def to_fixed_centres(outputs, targets):
    centres = torch.eye(CLASSES)[targets]
    return F.cross_entropy(outputs, targets) + (outputs - centres).square().mean()


def ranks_positives(outputs, targets):
    scores = outputs[targets == 1, 0]
    pairs = F.softplus(scores[:, None] - scores[None, :] + 1.0)
    return F.cross_entropy(outputs, targets) + pairs.sum() / len(targets)


def against_a_margin(outputs, targets):
    return F.cross_entropy(outputs, targets) + F.softplus(outputs[:, 0] * (targets == 1) + 1.0).mean()


def centred_by_session(x):
    same = (x[:, :1] == x[:, 0]).float()
    return x - same @ x / same.sum(1, keepdim=True)


def centred_late_rows(x):
    late = (x[:, :1] >= 4).float()
    mean = (late * x).sum(0) / late.sum().clamp(min=1)
    return x - late * mean


MEMBERS = [
    SORTED(
        "a loss over the centre of the positives of the batch",
        coupled=under(lambda: to_the_centre_of_positives),
        benign=under(lambda: to_fixed_centres),
        pair=sorted_by_class,
    ),
    SORTED(
        "a loss ranks the positives of the batch",
        coupled=under(lambda: ranks_positives),
        benign=under(lambda: against_a_margin),
        pair=sorted_by_class,
    ),
    SORTED(
        "a network centres the rows of a session",
        coupled=applying(centred_by_session),
        benign=applying(lambda x: x - x.mean(1, keepdim=True)),
        pair=sorted_by_session,
        engine="bookkeeping",
    ),
    SORTED(
        "a network centres rows that come late in the data",
        coupled=applying(centred_late_rows),
        benign=applying(lambda x: x - (x[:, :1] >= 4).float() * x.mean(1, keepdim=True)),
        pair=sorted_by_session,
        engine="bookkeeping",
    ),
]
