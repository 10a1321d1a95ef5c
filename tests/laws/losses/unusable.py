"""Losses that cannot be trained privately."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from . import formulas
from .cases import CLASSES, LossCase, chances, features, flags, labels, of, rows, whole
from .networks import Views, dense, heads

_OTHERS = ("the loss needs other examples", "exactly zero for 24 single examples", "use a loss of single examples")

UNUSABLE = [
    LossCase("SimCLR", of(formulas.nt_xent), lambda: Views().double(), features, labels, refused=_OTHERS),
    LossCase("CLIP", of(formulas.clip), lambda: Views().double(), features, labels, refused=_OTHERS),
    LossCase("batch-hard triplet", of(formulas.batch_hard), dense(), features, labels, refused=_OTHERS),
    LossCase("supervised contrastive", of(formulas.supervised_contrast), dense(), features, labels, refused=_OTHERS),
    LossCase("Cox", of(formulas.cox), dense(1), features, chances(), refused=_OTHERS),
    LossCase("RankNet in the batch", of(formulas.pairwise_rank), dense(1), features, chances(), refused=_OTHERS),
    LossCase("correlation", of(formulas.correlation), dense(1), features, chances(1), refused=_OTHERS),
    LossCase("Barlow Twins", of(formulas.barlow), lambda: Views().double(), features, labels, refused=_OTHERS),
    LossCase("domain discrepancy", of(formulas.discrepancy), dense(), features, flags(), refused=_OTHERS),
    LossCase(
        "a number of Python",
        of(lambda o, y: F.mse_loss(o, y).item()),
        dense(),
        features,
        rows(CLASSES),
        refused=("loss_fn must return a tensor", "of type float", "remove .item()"),
    ),
    LossCase(
        "detached",
        of(lambda o, y: F.mse_loss(o.detach(), y)),
        dense(),
        features,
        rows(CLASSES),
        refused=("the loss", "depends on no trainable parameter", "Look for detach()"),
    ),
    LossCase(
        "of chosen classes",
        of(lambda o, y: (o.argmax(1) != y).double().mean()),
        dense(),
        features,
        labels,
        refused=("the loss", "depends on no trainable parameter", "argmax"),
    ),
    LossCase(
        "one number per output",
        of(lambda o, y: (o - y) ** 2),
        dense(),
        features,
        rows(CLASSES),
        refused=("loss_fn must return one number", "(1, 4)", "average or sum over"),
    ),
    LossCase(
        "integers as targets of probabilities",
        lambda: nn.BCEWithLogitsLoss(),
        dense(1),
        features,
        whole(2, 1),
        refused=("loss_fn(outputs, targets) fails", "int64", "targets.float()"),
    ),
    LossCase(
        "a class that does not exist",
        lambda: nn.CrossEntropyLoss(),
        dense(),
        features,
        lambda: labels() + 1,
        refused=("target 4 at row 3", "targets must be in [0, 3]", "give the network more outputs"),
    ),
    LossCase(
        "trained weights in the loss",
        formulas.OwnWeights,
        dense(),
        features,
        rows(CLASSES),
        refused=(
            "the optimizer holds 1 trainable parameter(s)",
            "'log_scale' of the loss",
            "a parameter of the network",
        ),
    ),
    LossCase(
        "a fixed batch size",
        of(lambda o, y: F.mse_loss(o.reshape(24, -1), y.reshape(24, -1))),
        dense(),
        features,
        rows(CLASSES),
        refused=("the loss has a batch size written into it", "24", "x.shape[0]"),
    ),
    LossCase("whitened scores", of(formulas.whitened), dense(), features, labels, refused=_OTHERS),
    LossCase(
        "explained variance",
        of(formulas.explained),
        dense(1),
        features,
        rows(1),
        refused=("the loss needs other examples", "not finite for 24 single examples", "use a loss of single examples"),
    ),
    LossCase(
        "hard examples",
        of(formulas.hard_examples),
        dense(),
        features,
        labels,
        refused=("loss_fn(outputs, targets) fails", "shape (4,)", "use a loss of single examples"),
    ),
    LossCase(
        "classes of the batch",
        of(lambda o, y: F.mse_loss(o.softmax(1), F.one_hot(y).double())),
        dense(),
        features,
        labels,
        refused=("loss_fn(outputs, targets) fails", "tensor a (4)", "F.one_hot with num_classes"),
    ),
    LossCase(
        "numbers in a column against numbers in a row",
        lambda: nn.MSELoss(),
        dense(1),
        features,
        rows(),
        refused=("MSELoss compares element by element", "shape (1,)", "targets.unsqueeze(1)"),
    ),
    LossCase(
        "a loss of three arguments",
        lambda: nn.GaussianNLLLoss(),
        heads(1, 1),
        features,
        rows(1),
        refused=("loss_fn(outputs, targets) fails", "argument: 'var'", "lambda outputs, targets: loss("),
    ),
    LossCase(
        "a loss and what it is made of",
        of(lambda o, y: (F.mse_loss(o, y), {"squared": 1.0})),
        dense(),
        features,
        rows(CLASSES),
        refused=("loss_fn must return a tensor", "got a tuple", "return only the tensor to differentiate"),
    ),
    LossCase(
        "without a return",
        of(lambda o, y: None),
        dense(),
        features,
        rows(CLASSES),
        refused=("loss_fn must return a tensor", "got None", "it has no return statement"),
    ),
]
