"""Couplings in the loss."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ..neighbours import CLASSES, Member, one_more_first, under

LOSS = partial(Member, kind="loss")

#: Larger than the outputs of all examples of the data.
LARGE = 2.0


class Reduced(nn.Module):
    """A loss with a reduction, from a function that returns one loss per example."""

    reduction = "mean"

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, outputs, targets):
        losses = self.function(outputs, targets)
        return losses if self.reduction == "none" else losses.mean()


def each(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def reduced(function):
    return under(lambda: Reduced(function))


def plain(function):
    return under(lambda: function)


def in_batch_negatives(outputs, targets):
    features = F.normalize(outputs, dim=1)
    likeness = features @ features.T / 0.1
    return each(outputs, targets) * 0.1 + likeness.logsumexp(1)


def fixed_negatives(outputs, targets):
    return each(outputs, targets) * 0.1 + (F.normalize(outputs, dim=1) @ torch.eye(CLASSES) / 0.1).logsumexp(1)


def ranking(outputs, targets):
    score = outputs[:, 0]
    return each(outputs, targets) + F.softplus(score[:, None] - score[None, :]).sum(1)


def margin(outputs, targets):
    return each(outputs, targets) + F.softplus(outputs[:, 0] - outputs[:, 1])


def weighted_by_batch(outputs, targets):
    counts = torch.bincount(targets, minlength=CLASSES)
    return each(outputs, targets) * (20 * counts.min() / counts.clamp(min=1))[targets]


def weighted(outputs, targets):
    return each(outputs, targets) / torch.arange(2.0, CLASSES + 2)[targets]


def hardest(outputs, targets):
    losses = each(outputs, targets)
    return losses * (losses >= losses.topk(min(3, len(losses))).values[-1])


def hard(outputs, targets):
    losses = each(outputs, targets)
    return losses * (losses.detach() > 1.0)


def over_the_largest(outputs, targets):
    losses = each(outputs, targets)
    return losses / losses.detach().max()


def focal(outputs, targets):
    losses = each(outputs, targets)
    return losses * (1 - (-losses).exp()).square()


def over_all_weights(outputs, targets):
    losses = each(outputs, targets)
    weights = losses.detach()
    return 20 * losses * weights / weights.sum()


def mixed(outputs, targets):
    return each(0.5 * (outputs + outputs.roll(1, 0)), targets)


def smoothed(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.2)


def smoothed_by_batch(outputs, targets):
    frequencies = F.one_hot(targets, CLASSES).float().mean(0)
    soft = 0.2 * F.one_hot(targets, CLASSES) + 0.8 * frequencies
    return -(soft * outputs.log_softmax(1)).sum(1)


def decorrelated(outputs, targets):
    centred = outputs - outputs.mean(0)
    return F.cross_entropy(outputs, targets) + (centred.T @ centred / len(outputs)).square().sum()


def penalised(outputs, targets):
    return F.cross_entropy(outputs, targets) + outputs.square().sum(1).square().mean()


def spread(outputs, targets):
    return F.cross_entropy(outputs, targets) - outputs.std(0, unbiased=False).sum()


def spread_within(outputs, targets):
    return F.cross_entropy(outputs, targets) - outputs.std(1).mean()


def over_the_mean(outputs, targets):
    losses = each(outputs, targets)
    return losses / losses.detach().mean()


def huber(outputs, targets):
    return F.huber_loss(outputs, F.one_hot(targets, CLASSES).float(), reduction="none").sum(1)


class OfThoseMarked(nn.Module):
    """A loss over the outputs that an example marks; ``average`` receives its terms and the number of examples."""

    reduction = "mean"

    def __init__(self, average):
        super().__init__()
        self.average = average

    def forward(self, outputs, targets):
        marked = F.one_hot(targets, CLASSES).bool() | (outputs > LARGE)
        losses = F.softplus(-outputs[marked])
        return losses if self.reduction == "none" else self.average(losses, len(outputs))


MEMBERS = [
    LOSS(
        "returns one value or several, as an example decides",
        coupled=under(lambda: OfThoseMarked(lambda losses, size: 9 * losses.mean())),
        benign=under(lambda: OfThoseMarked(lambda losses, size: losses.sum() / size)),
        pair=one_more_first,
        seen=False,
        engine="loop",
    ),
    LOSS("negatives are the other examples", coupled=reduced(in_batch_negatives), benign=reduced(fixed_negatives)),
    LOSS(
        "negatives are the others, one number",
        coupled=plain(lambda o, t: in_batch_negatives(o, t).mean()),
        benign=plain(lambda o, t: fixed_negatives(o, t).mean()),
    ),
    LOSS("examples are ranked in pairs", coupled=reduced(ranking), benign=reduced(margin)),
    LOSS("classes are weighted by the batch", coupled=reduced(weighted_by_batch), benign=reduced(weighted)),
    LOSS("only the hardest examples count", coupled=reduced(hardest), benign=reduced(hard)),
    LOSS("losses are divided by the largest", coupled=reduced(over_the_largest), benign=reduced(focal)),
    LOSS("weights of all examples add up to one", coupled=reduced(over_all_weights), benign=reduced(focal)),
    LOSS("outputs are mixed with another example's", coupled=reduced(mixed), benign=reduced(smoothed)),
    LOSS(
        "labels are smoothed by the batch's frequencies", coupled=reduced(smoothed_by_batch), benign=reduced(smoothed)
    ),
    LOSS("outputs are decorrelated over the batch", coupled=plain(decorrelated), benign=plain(penalised)),
    LOSS("outputs are spread over the batch", coupled=plain(spread), benign=plain(spread_within)),
    LOSS("losses are divided by their mean", coupled=reduced(over_the_mean), benign=reduced(huber)),
]
