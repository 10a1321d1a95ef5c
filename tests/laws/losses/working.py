"""Losses that are trained."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from . import formulas
from .cases import (
    CLASSES,
    EXAMPLES,
    FEATURES,
    LossCase,
    both,
    boxes,
    chances,
    class_weight,
    features,
    flags,
    image,
    labels,
    next_tokens,
    of,
    rows,
    texts,
    whole,
)
from .networks import (
    AdaptiveSoftmax,
    Autoencoder,
    DictOfLosses,
    Penalised,
    Physics,
    Solution,
    Tokens,
    Weighing,
    dense,
    heads,
    pixels,
)

WORKING = [
    # classes
    LossCase("cross entropy", lambda: nn.CrossEntropyLoss(), dense(), features, labels),
    LossCase("cross entropy, function", of(F.cross_entropy), dense(), features, labels),
    LossCase("cross entropy, sum", lambda: nn.CrossEntropyLoss(reduction="sum"), dense(), features, labels),
    LossCase(
        "cross entropy, label smoothing", lambda: nn.CrossEntropyLoss(label_smoothing=0.1), dense(), features, labels
    ),
    LossCase("custom label smoothing", formulas.LabelSmoothing, dense(), features, labels),
    LossCase(
        "cross entropy, soft targets",
        lambda: nn.CrossEntropyLoss(),
        dense(),
        features,
        lambda: rows(CLASSES)().softmax(1),
    ),
    LossCase("negative log-likelihood", lambda: nn.NLLLoss(), dense(last=lambda: nn.LogSoftmax(1)), features, labels),
    LossCase(
        "weighted cross entropy",
        lambda: nn.CrossEntropyLoss(weight=class_weight),
        dense(),
        features,
        labels,
        alone=of(lambda o, y: F.cross_entropy(o, y, weight=class_weight, reduction="sum")),
        said="class weights up to 3",
    ),
    LossCase(
        "weighted cross entropy, partial",
        of(partial(F.cross_entropy, weight=class_weight)),
        dense(),
        features,
        labels,
        alone=of(lambda o, y: F.cross_entropy(o, y, weight=class_weight, reduction="sum")),
        said="class weights up to 3",
    ),
    LossCase(
        "weighted cross entropy, lambda",
        of(lambda o, y: F.cross_entropy(o, y, weight=class_weight)),
        dense(),
        features,
        labels,
        said="the weight cancels",
    ),
    LossCase(
        "weights of examples",
        of(lambda o, y: (class_weight[y] * F.cross_entropy(o, y, reduction="none")).mean()),
        dense(),
        features,
        labels,
    ),
    LossCase("focal", formulas.FocalLoss, dense(), features, labels),
    LossCase(
        "focal of torchvision",
        of(sigmoid_focal_loss),
        dense(),
        features,
        flags(CLASSES),
        alone=of(partial(sigmoid_focal_loss, reduction="mean")),
    ),
    LossCase("multi-class hinge", lambda: nn.MultiMarginLoss(), dense(), features, labels),
    LossCase("hinge", of(lambda o, y: F.relu(1 - o.squeeze(1) * (2 * y - 1)).mean()), dense(1), features, flags()),
    LossCase("ArcFace", of(formulas.arc_face), dense(last=nn.Tanh), features, labels),
    LossCase("ordinal (CORAL)", of(formulas.coral_ordinal), dense(CLASSES - 1), features, labels),
    LossCase("evidential", of(formulas.evidential), dense(), features, labels),
    LossCase(
        "confidence penalty",
        of(lambda o, y: F.cross_entropy(o, y) + 0.1 * (o.softmax(1) * o.log_softmax(1)).sum(1).mean()),
        dense(),
        features,
        labels,
    ),
    LossCase("distillation", of(formulas.distillation), dense(), features, both(labels, rows(CLASSES))),
    LossCase(
        "KL divergence, batchmean",
        lambda: nn.KLDivLoss(reduction="batchmean"),
        dense(last=lambda: nn.LogSoftmax(1)),
        features,
        lambda: rows(CLASSES)().softmax(1),
    ),
    # several labels
    LossCase("multi-label", lambda: nn.BCEWithLogitsLoss(), dense(), features, flags(CLASSES)),
    LossCase(
        "multi-label, weight of positives",
        lambda: nn.BCEWithLogitsLoss(pos_weight=class_weight / 8),
        dense(),
        features,
        flags(CLASSES),
    ),
    LossCase("probabilities of labels", lambda: nn.BCELoss(), dense(last=nn.Sigmoid), features, flags(CLASSES)),
    LossCase("multi-label soft margin", lambda: nn.MultiLabelSoftMarginLoss(), dense(), features, flags(CLASSES)),
    # numbers
    LossCase("squared error", lambda: nn.MSELoss(), dense(), features, rows(CLASSES)),
    LossCase("squared error, sum", of(lambda o, y: ((o - y) ** 2).sum() / 128), dense(), features, rows(CLASSES)),
    LossCase("Huber", lambda: nn.HuberLoss(delta=0.5), dense(), features, rows(CLASSES)),
    LossCase("smooth L1", of(partial(F.smooth_l1_loss, beta=0.5)), dense(), features, rows(CLASSES)),
    LossCase("log cosh", of(lambda o, y: torch.log(torch.cosh(o - y)).mean()), dense(), features, rows(CLASSES)),
    LossCase(
        "root of the mean squared error",
        of(lambda o, y: torch.sqrt(F.mse_loss(o, y))),
        dense(),
        features,
        rows(CLASSES),
        said="not the sum or the mean of their losses",
    ),
    LossCase("quantiles", of(formulas.quantiles), dense(3), features, rows(1)),
    LossCase("Poisson", lambda: nn.PoissonNLLLoss(), dense(1), features, lambda: whole(5, 1)().double()),
    LossCase("negative binomial", of(formulas.negative_binomial), dense(2), features, lambda: whole(5, 1)().double()),
    LossCase("Tweedie", of(formulas.tweedie), dense(1), features, chances(1)),
    LossCase("Gaussian", of(formulas.gaussian), heads(1, 1), features, rows(1)),
    LossCase("heteroscedastic", of(formulas.heteroscedastic), dense(2), features, rows(1)),
    LossCase("likelihood of torch.distributions", of(formulas.likelihood), dense(2), features, rows(1)),
    LossCase("mixture density", of(formulas.mixture), heads(3, 3, 3), features, rows(1)),
    LossCase("critic", of(lambda o, y: (o.squeeze(1) * y).mean()), dense(1), features, rows()),
    # tokens
    LossCase(
        "tokens, ignored ones",
        lambda: nn.CrossEntropyLoss(ignore_index=0),
        lambda: Tokens(classes_first=True).double(),
        texts,
        next_tokens(0),
    ),
    LossCase(
        "tokens, flattened",
        of(lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten(), ignore_index=-100)),
        lambda: Tokens().double(),
        texts,
        next_tokens(-100),
        said="not the sum or the mean of their losses",
    ),
    LossCase(
        "next token",
        of(lambda o, y: F.cross_entropy(o[:, :-1].reshape(-1, o.shape[-1]), y[:, 1:].reshape(-1))),
        lambda: Tokens().double(),
        texts,
        next_tokens(3),
    ),
    LossCase("CTC", of(formulas.ctc), lambda: Tokens().double(), texts, both(whole(12, 3, low=1), whole(4, low=1))),
    LossCase("chain CRF", of(formulas.chain_crf), lambda: Tokens().double(), texts, texts),
    # images
    LossCase("pixels", lambda: nn.CrossEntropyLoss(), pixels(CLASSES), image, whole(CLASSES, 9, 9)),
    LossCase(
        "dice of the batch",
        formulas.DiceLoss,
        pixels(),
        image,
        flags(1, 9, 9),
        said="not the sum or the mean of their losses",
    ),
    LossCase("dice of each image", of(formulas.dice_of_images), pixels(), image, flags(1, 9, 9)),
    LossCase("Tversky", of(formulas.tversky), pixels(), image, flags(1, 9, 9)),
    LossCase("Lovász hinge", of(formulas.lovasz_hinge), pixels(), image, flags(1, 9, 9)),
    LossCase("SSIM", of(formulas.structural), pixels(3), image, image),
    LossCase("Charbonnier and total variation", formulas.Charbonnier, pixels(3), image, image),
    LossCase("boxes", of(formulas.box_losses), dense(4), features, boxes),
    # comparisons inside an example
    LossCase(
        "cosine embedding",
        of(lambda o, y: F.cosine_embedding_loss(o[0], o[1], 2 * y - 1)),
        heads(3, 3),
        features,
        flags(),
    ),
    LossCase("triplet", of(formulas.triplet), dense(3), rows(3, FEATURES), flags()),
    LossCase("pairs", of(formulas.pair_contrastive), dense(3), rows(2, FEATURES), flags()),
    LossCase("InfoNCE, negatives given", of(formulas.info_nce), dense(3), rows(7, FEATURES), flags()),
    LossCase(
        "ListNet", of(formulas.list_net), lambda: nn.Sequential(dense(1)(), nn.Flatten()), rows(7, FEATURES), rows(7)
    ),
    LossCase(
        "pairs of a list",
        of(formulas.rank_in_list),
        lambda: nn.Sequential(dense(1)(), nn.Flatten()),
        rows(7, FEATURES),
        rows(7),
    ),
    # parts
    LossCase(
        "several tasks",
        of(formulas.several_tasks),
        heads(CLASSES, 1, names=("kind", "size")),
        features,
        lambda: {"kind": labels(), "size": rows(1)()},
    ),
    LossCase(
        "tasks weighted by uncertainty",
        of(formulas.uncertainty),
        lambda: Weighing().double(),
        features,
        both(labels, rows()),
    ),
    LossCase("ELBO, summed", of(formulas.elbo), lambda: Autoencoder().double(), both(features, rows(3)), features),
    LossCase(
        "losses of the network",
        of(lambda losses, _: sum(losses.values())),
        lambda: DictOfLosses().double(),
        lambda: {"image": features(), "labels": labels(), "boxes": boxes()},
        labels,
    ),
    LossCase(
        "known values only",
        of(formulas.masked_error),
        dense(),
        features,
        both(rows(CLASSES), lambda: (torch.arange(EXAMPLES * CLASSES).reshape(EXAMPLES, CLASSES) % 3 > 0).double()),
        said="not the sum or the mean of their losses",
    ),
    LossCase(
        "known values only, multiplied",
        of(formulas.multiplied_mask),
        dense(),
        features,
        both(rows(CLASSES), lambda: (torch.arange(EXAMPLES * CLASSES).reshape(EXAMPLES, CLASSES) % 3 > 0).double()),
        said="not the sum or the mean of their losses",
    ),
    LossCase("discrete survival", of(formulas.discrete_survival), dense(7), features, both(whole(7), flags())),
    LossCase(
        "clipped policy", of(formulas.clipped_policy), dense(), features, both(labels, rows(), lambda: -chances()())
    ),
    # derivatives in the forward pass
    LossCase(
        "gradient penalty",
        of(lambda o, y: (o[0].squeeze(1) * y).mean() + 10 * ((o[1] - 1) ** 2).mean()),
        Penalised,
        features,
        rows(),
    ),
    LossCase(
        "physics-informed", of(lambda o, y: F.mse_loss(o[0], y) + (o[1] ** 2).mean()), Physics, chances(1), rows(1)
    ),
    LossCase("derivative in the loss", of(formulas.slope_of_solution), Solution, chances(1), rows(1)),
    LossCase("derivative by the outputs", of(formulas.steep), dense(1), features, labels),
    # algorithms
    LossCase("Hungarian matching", of(formulas.hungarian), dense(), features, rows(CLASSES)),
    LossCase("Sinkhorn", of(formulas.sinkhorn), dense(), features, rows(CLASSES)),
    LossCase("hard pixels", of(formulas.hard_pixels), pixels(CLASSES), image, whole(CLASSES, 9, 9)),
    LossCase(
        "adaptive softmax",
        of(lambda found, _: found.loss),
        lambda: AdaptiveSoftmax().double(),
        lambda: (features(), labels()),
        labels,
    ),
]
