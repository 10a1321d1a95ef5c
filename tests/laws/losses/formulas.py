"""Losses as people write them."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, NegativeBinomial, Normal
from torchvision.ops import generalized_box_iou_loss


class FocalLoss(nn.Module):
    """For classes, with its own reduction."""

    def __init__(self, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__()
        self.gamma, self.reduction = gamma, reduction

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        entropy = F.cross_entropy(scores, targets, reduction="none")
        losses = (1 - torch.exp(-entropy)) ** self.gamma * entropy
        return {"mean": losses.mean, "sum": losses.sum}.get(self.reduction, lambda: losses)()


class LabelSmoothing(nn.Module):
    def __init__(self, smoothing: float = 0.1) -> None:
        super().__init__()
        self.confidence, self.smoothing = 1.0 - smoothing, smoothing

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        log_chances = F.log_softmax(scores, dim=-1)
        hit = -log_chances.gather(dim=-1, index=target.unsqueeze(1)).squeeze(1)
        return (self.confidence * hit - self.smoothing * log_chances.mean(dim=-1)).mean()


class DiceLoss(nn.Module):
    def forward(self, scores: Tensor, masks: Tensor, smooth: float = 1.0) -> Tensor:
        found, wanted = torch.sigmoid(scores).view(-1), masks.view(-1)
        return 1 - (2.0 * (found * wanted).sum() + smooth) / (found.sum() + wanted.sum() + smooth)


def dice_of_images(scores: Tensor, masks: Tensor) -> Tensor:
    found = torch.sigmoid(scores)
    shared, total = (found * masks).sum((1, 2, 3)), found.sum((1, 2, 3)) + masks.sum((1, 2, 3))
    return (1 - (2 * shared + 1) / (total + 1)).mean()


def tversky(scores: Tensor, masks: Tensor) -> Tensor:
    found = torch.sigmoid(scores).flatten(1)
    wanted = masks.flatten(1)
    hit = (found * wanted).sum(1)
    missed, false = ((1 - found) * wanted).sum(1), (found * (1 - wanted)).sum(1)
    return (1 - (hit + 1) / (hit + 0.3 * false + 0.7 * missed + 1)).pow(0.75).mean()


def lovasz_hinge(scores: Tensor, masks: Tensor) -> Tensor:
    """Berman et al. 2018, per image."""

    def of_image(score: Tensor, mask: Tensor) -> Tensor:
        errors, order = (1.0 - score * (2.0 * mask - 1.0)).sort(dim=0, descending=True)
        wanted = mask[order]
        both_ = wanted.sum() - wanted.cumsum(0)
        jaccard = 1.0 - both_ / (wanted.sum() + (1.0 - wanted).cumsum(0))
        jaccard = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        return torch.dot(F.relu(errors), jaccard)

    return torch.stack([of_image(s.flatten(), m.flatten()) for s, m in zip(scores, masks, strict=True)]).mean()


def elbo(outputs: tuple[Tensor, ...], x: Tensor) -> Tensor:
    found, mean, log_variance = outputs
    return F.mse_loss(found, x, reduction="sum") - 0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp())


def distillation(scores: Tensor, targets: tuple[Tensor, Tensor], t: float = 3.0) -> Tensor:
    y, teacher = targets
    soft = F.kl_div(F.log_softmax(scores / t, 1), F.softmax(teacher / t, 1), reduction="batchmean") * t * t
    return 0.7 * soft + 0.3 * F.cross_entropy(scores, y)


def ctc(scores: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    written, lengths = targets
    steps = torch.full((len(scores),), scores.shape[1], dtype=torch.long)
    return F.ctc_loss(scores.log_softmax(2).transpose(0, 1), written, steps, lengths, zero_infinity=True)


def gaussian(outputs: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    return nn.GaussianNLLLoss()(outputs[0], y, outputs[1].exp())


def heteroscedastic(outputs: Tensor, y: Tensor) -> Tensor:
    mean, log_variance = outputs[:, :1], outputs[:, 1:]
    return (0.5 * torch.exp(-log_variance) * (y - mean) ** 2 + 0.5 * log_variance).mean()


def likelihood(outputs: Tensor, y: Tensor) -> Tensor:
    return -Normal(outputs[:, :1], F.softplus(outputs[:, 1:])).log_prob(y).mean()


def mixture(outputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
    weights, means, scales = outputs
    return -MixtureSameFamily(Categorical(logits=weights), Normal(means, scales.exp())).log_prob(y.squeeze(1)).mean()


def negative_binomial(outputs: Tensor, y: Tensor) -> Tensor:
    return -NegativeBinomial(F.softplus(outputs[:, :1]), logits=outputs[:, 1:]).log_prob(y).mean()


def tweedie(scores: Tensor, y: Tensor, p: float = 1.5) -> Tensor:
    return (-y * torch.exp(scores * (1 - p)) / (1 - p) + torch.exp(scores * (2 - p)) / (2 - p)).mean()


def quantiles(found: Tensor, y: Tensor) -> Tensor:
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=found.dtype)
    errors = y - found
    return torch.max((levels - 1) * errors, levels * errors).sum(dim=1).mean()


def info_nce(embedded: Tensor, _: Tensor) -> Tensor:
    """The anchor, its positive and negatives are one example, shape (N, 2 + negatives, D)."""
    embedded = F.normalize(embedded, dim=-1)
    likeness = (embedded[:, :1] * embedded[:, 1:]).sum(-1) / 0.1
    return F.cross_entropy(likeness, torch.zeros(len(likeness), dtype=torch.long))


def triplet(embedded: Tensor, _: Tensor) -> Tensor:
    return F.triplet_margin_loss(embedded[:, 0], embedded[:, 1], embedded[:, 2], margin=1.0)


def pair_contrastive(embedded: Tensor, same: Tensor) -> Tensor:
    distance = F.pairwise_distance(embedded[:, 0], embedded[:, 1])
    return (same * distance**2 + (1 - same) * F.relu(1.0 - distance) ** 2).mean()


def list_net(scores: Tensor, relevance: Tensor) -> Tensor:
    return -(F.softmax(relevance, 1) * F.log_softmax(scores, 1)).sum(1).mean()


def rank_in_list(scores: Tensor, relevance: Tensor) -> Tensor:
    differences = scores.unsqueeze(2) - scores.unsqueeze(1)
    ordered = (relevance.unsqueeze(2) > relevance.unsqueeze(1)).to(scores.dtype)
    return (F.softplus(-differences) * ordered).sum((1, 2)).mean()


def arc_face(cosines: Tensor, y: Tensor, margin: float = 0.3, scale: float = 8.0) -> Tensor:
    angle = torch.acos(cosines.clamp(-1 + 1e-7, 1 - 1e-7))
    return F.cross_entropy(scale * torch.cos(angle + margin * F.one_hot(y, cosines.shape[1])), y)


def coral_ordinal(scores: Tensor, y: Tensor) -> Tensor:
    levels = (y.unsqueeze(1) > torch.arange(scores.shape[1])).to(scores.dtype)
    return -(F.logsigmoid(scores) * levels + (F.logsigmoid(scores) - scores) * (1 - levels)).sum(1).mean()


def chain_crf(scores: Tensor, y: Tensor) -> Tensor:
    """A linear chain: outputs of shape (N, T, V), with transitions that reward staying."""
    moves = torch.eye(scores.shape[2], dtype=scores.dtype)
    ahead = scores[:, 0]
    path = scores[:, 0].gather(1, y[:, :1]).squeeze(1)
    for step in range(1, scores.shape[1]):
        ahead = torch.logsumexp(ahead.unsqueeze(2) + moves, dim=1) + scores[:, step]
        path = path + scores[:, step].gather(1, y[:, step : step + 1]).squeeze(1) + moves[y[:, step - 1], y[:, step]]
    return (torch.logsumexp(ahead, dim=1) - path).mean()


def masked_error(found: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    values, known = targets
    return F.mse_loss(found[known.bool()], values[known.bool()])


def multiplied_mask(found: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    values, known = targets
    return ((found - values) ** 2 * known).sum() / known.sum().clamp(min=1)


def discrete_survival(scores: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    time, event = targets
    hazard = torch.sigmoid(scores)
    steps = torch.arange(scores.shape[1])
    survived = (torch.log1p(-hazard) * (steps < time.unsqueeze(1))).sum(1)
    last = hazard.gather(1, time.unsqueeze(1)).squeeze(1)
    return -(survived + event * last.log() + (1 - event) * torch.log1p(-last)).mean()


def clipped_policy(scores: Tensor, targets: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    action, advantage, before = targets
    chosen = Categorical(logits=scores)
    ratio = (chosen.log_prob(action) - before).exp()
    best = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return -best.mean() - 0.01 * chosen.entropy().mean()


def several_tasks(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(outputs["kind"], targets["kind"]) + 0.5 * F.l1_loss(outputs["size"], targets["size"])


def uncertainty(outputs: tuple[Tensor, ...], targets: tuple[Tensor, Tensor]) -> Tensor:
    kinds, sizes, log_variances = outputs
    losses = torch.stack(
        [
            F.cross_entropy(kinds, targets[0], reduction="none"),
            F.mse_loss(sizes.squeeze(1), targets[1], reduction="none"),
        ]
    )
    return (torch.exp(-log_variances.T) * losses + log_variances.T).sum(0).mean()


def box_losses(outputs: Tensor, boxes: Tensor) -> Tensor:
    low, size = outputs[:, :2], F.softplus(outputs[:, 2:])
    found = torch.cat([low, low + size], dim=1)
    return generalized_box_iou_loss(found, boxes, reduction="mean") + F.l1_loss(found, boxes)


def evidential(outputs: Tensor, y: Tensor) -> Tensor:
    alpha = F.softplus(outputs) + 1.0
    total = alpha.sum(1, keepdim=True)
    wanted = F.one_hot(y, outputs.shape[1]).to(outputs.dtype)
    return (wanted * (torch.digamma(total) - torch.digamma(alpha))).sum(1).mean()


def structural(found: Tensor, wanted: Tensor) -> Tensor:
    """1 - SSIM with a window of ones."""
    mean = partial(F.avg_pool2d, kernel_size=3, stride=1)
    a, b = mean(found), mean(wanted)
    va, vb, ab = mean(found**2) - a**2, mean(wanted**2) - b**2, mean(found * wanted) - a * b
    ssim = (2 * a * b + 1e-4) * (2 * ab + 9e-4) / ((a**2 + b**2 + 1e-4) * (va + vb + 9e-4))
    return 1 - ssim.mean()


class Charbonnier(nn.Module):
    def forward(self, found: Tensor, wanted: Tensor) -> Tensor:
        return torch.sqrt((found - wanted) ** 2 + 1e-6).mean() + 0.1 * (found[..., 1:] - found[..., :-1]).abs().mean()


def slope_of_solution(outputs: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    """``u' = -u``, and known values."""
    u, t = outputs
    (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
    return (slope + u).pow(2).mean() + F.mse_loss(u, y)


def steep(outputs: Tensor, _: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(outputs.pow(3).sum(), outputs, create_graph=True)
    return slope.pow(2).mean()


def hungarian(found: Tensor, wanted: Tensor) -> Tensor:
    """For sets of numbers, matched by SciPy."""
    total = found.new_zeros(())
    for one, other in zip(found, wanted, strict=True):
        costs = (one.unsqueeze(1) - other.unsqueeze(0)).abs()
        total = total + costs[linear_sum_assignment(costs.detach().numpy())].mean()
    return total / len(found)


def sinkhorn(found: Tensor, wanted: Tensor) -> Tensor:
    costs = (found.unsqueeze(2) - wanted.unsqueeze(1)).abs()
    u = v = torch.zeros_like(found)
    for _ in range(5):
        u = -torch.logsumexp(-5 * costs + v.unsqueeze(1), 2)
        v = -torch.logsumexp(-5 * costs + u.unsqueeze(2), 1)
    return (torch.exp(-5 * costs + u.unsqueeze(2) + v.unsqueeze(1)) * costs).sum((1, 2)).mean()


def hard_pixels(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores, y, reduction="none").flatten(1).topk(20, 1).values.mean()


# Losses that compare the examples of a batch.


def nt_xent(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """SimCLR."""
    views = torch.cat(outputs)
    likeness = (views @ views.T / 0.5).masked_fill(torch.eye(len(views), dtype=torch.bool), -1e9)
    return F.cross_entropy(likeness, (torch.arange(len(views)) + len(targets)) % len(views))


def clip(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    likeness = outputs[0] @ outputs[1].T / 0.07
    places = torch.arange(len(targets))
    return (F.cross_entropy(likeness, places) + F.cross_entropy(likeness.T, places)) / 2


def batch_hard(embedded: Tensor, y: Tensor) -> Tensor:
    distances = (embedded.unsqueeze(0) - embedded.unsqueeze(1)).pow(2).sum(2)
    same = y.unsqueeze(0) == y.unsqueeze(1)
    farthest = (distances * same).max(1).values
    nearest = distances.masked_fill(same, 1e9).min(1).values
    return F.relu(farthest - nearest + 1.0).mean()


def supervised_contrast(embedded: Tensor, y: Tensor) -> Tensor:
    embedded = F.normalize(embedded, dim=1)
    own = torch.eye(len(y), dtype=torch.bool)
    chances_ = (embedded @ embedded.T).masked_fill(own, -1e9).log_softmax(1)
    same = (y.unsqueeze(0) == y.unsqueeze(1)) & ~own
    return -((chances_ * same).sum(1) / same.sum(1).clamp(min=1)).mean()


def cox(risk: Tensor, targets: Tensor) -> Tensor:
    order = targets.argsort(descending=True)
    risk = risk.squeeze(1)[order]
    return -(risk - torch.logcumsumexp(risk, 0)).mean()


def pairwise_rank(scores: Tensor, relevance: Tensor) -> Tensor:
    scores = scores.squeeze(1)
    ordered = (relevance.unsqueeze(1) > relevance.unsqueeze(0)).to(scores.dtype)
    return (F.softplus(scores.unsqueeze(0) - scores.unsqueeze(1)) * ordered).sum()


def correlation(found: Tensor, y: Tensor) -> Tensor:
    found, y = found - found.mean(), y - y.mean()
    return 1 - (found * y).sum() / (found.norm() * y.norm() + 1e-8)


def barlow(outputs: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
    a, b = ((value - value.mean(0)) / (value.std(0, unbiased=False) + 1e-6) for value in outputs)
    likeness = a.T @ b / len(a)
    return (likeness - torch.eye(likeness.shape[0], dtype=likeness.dtype)).pow(2).sum()


def discrepancy(embedded: Tensor, domain: Tensor) -> Tensor:
    """The difference between the means of two domains (linear MMD)."""
    weights = domain / domain.sum().clamp(min=1) - (1 - domain) / (1 - domain).sum().clamp(min=1)
    both_ = (domain.sum() > 0) & (domain.sum() < len(domain))
    return (weights.unsqueeze(1) * embedded).sum(0).pow(2).sum() * both_


class OwnWeights(nn.Module):
    """A loss with its own trained parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, found: Tensor, y: Tensor) -> Tensor:
        return (torch.exp(-self.log_scale) * (found - y) ** 2 + self.log_scale).mean()


def hard_examples(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores, y, reduction="none").topk(3).values.mean()


def whitened(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy((scores - scores.mean(0)) / (scores.std(0, unbiased=False) + 1e-5), y)


def explained(found: Tensor, y: Tensor) -> Tensor:
    return (found - y).pow(2).sum() / (y - y.mean()).pow(2).sum()
