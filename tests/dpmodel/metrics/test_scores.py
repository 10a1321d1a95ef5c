"""Metrics by name are right or refused, whatever the outputs, targets and loss."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dpmodel.metrics import MetricSet
from monitors.errors import DataError

N = 40


def rows(nest, at):
    if isinstance(nest, torch.Tensor):
        return nest[at]
    return {name: part[at] if isinstance(part, torch.Tensor) else part for name, part in nest.items()}


def measured(loss_fn, outputs, targets, metric="accuracy"):
    """The metric for batches of 1, of 7 and of all examples, which must be equal."""
    found = []
    for size in (1, 7, N):
        metrics = MetricSet(metric, loss_fn=loss_fn)
        for at in torch.arange(len(targets)).split(size):
            metrics.update(rows(outputs, at), targets[at])
        found.append(metrics.compute()[metric])
    assert found == [pytest.approx(found[0], abs=1e-5)] * 3
    return found[0]


LOG_ODDS = torch.linspace(-3, 3, N)[torch.randperm(N, generator=torch.Generator().manual_seed(0))]
LABELS = (LOG_ODDS + torch.randn(N, generator=torch.Generator().manual_seed(1)) > 0).float()
RIGHT = float(((LOG_ODDS > 0).float() == LABELS).float().mean())


def own_bce(outputs, targets):
    return -(targets * (outputs + 1e-7).log() + (1 - targets) * (1 - outputs + 1e-7).log()).mean()


def clamped(outputs, targets):
    return F.binary_cross_entropy(outputs.clamp(1e-6, 1 - 1e-6).flatten(), targets.flatten())


def focal_of_probabilities(outputs, targets):
    of_target = torch.where(targets > 0.5, outputs, 1 - outputs)
    return -((1 - of_target) ** 2 * (of_target + 1e-7).log()).mean()


def focal_of_log_odds(outputs, targets):
    losses = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    return (0.25 * (1 - torch.exp(-losses)) ** 2 * losses).mean()


OF_PROBABILITIES = [
    nn.BCELoss(),
    nn.BCELoss(reduction="sum"),
    nn.MSELoss(),
    nn.L1Loss(),
    nn.SmoothL1Loss(),
    F.binary_cross_entropy,
    F.mse_loss,
    lambda outputs, targets: ((outputs - targets) ** 2).mean(),
    lambda outputs, targets: F.mse_loss(outputs, 0.9 * targets + 0.05),
    lambda outputs, targets: 0.001 * F.binary_cross_entropy(outputs, targets),
    own_bce,
    clamped,
    focal_of_probabilities,
]

OF_LOG_ODDS = [
    nn.BCEWithLogitsLoss(),
    nn.BCEWithLogitsLoss(pos_weight=torch.tensor([5.0])),
    F.binary_cross_entropy_with_logits,
    lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, 0.9 * targets + 0.05),
    lambda outputs, targets: F.relu(1 - (2 * targets - 1) * outputs).mean(),
    lambda outputs, targets: F.soft_margin_loss(outputs, 2 * targets - 1),
    lambda outputs, targets: F.mse_loss(outputs, 2 * targets - 1),
    focal_of_log_odds,
]


@pytest.mark.sample(39)
@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 1, 1)])
@pytest.mark.parametrize("loss_fn", OF_PROBABILITIES)
def test_scores_that_the_loss_reads_as_probabilities_are_cut_at_one_half(loss_fn, shape):
    outputs, targets = LOG_ODDS.sigmoid().reshape(shape), LABELS.reshape(shape)
    assert measured(loss_fn, outputs, targets) == pytest.approx(RIGHT)


@pytest.mark.sample(16)
@pytest.mark.parametrize("shape", [(N,), (N, 1)])
@pytest.mark.parametrize("loss_fn", OF_LOG_ODDS)
def test_scores_that_the_loss_reads_as_log_odds_are_cut_at_zero(loss_fn, shape):
    assert measured(loss_fn, LOG_ODDS.reshape(shape), LABELS.reshape(shape)) == pytest.approx(RIGHT)


@pytest.mark.sample(2)
@pytest.mark.parametrize("loss_fn", [lambda o, t: F.relu(1 - t * o).mean(), nn.SoftMarginLoss()])
def test_targets_of_a_hinge_may_be_minus_one_and_one(loss_fn):
    assert measured(loss_fn, LOG_ODDS, 2 * LABELS - 1) == pytest.approx(RIGHT)


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_targets_may_be_of_any_type_that_the_loss_takes(dtype):
    def loss_fn(outputs, targets):
        return F.binary_cross_entropy(outputs.squeeze(1), targets.float())

    assert measured(loss_fn, LOG_ODDS.sigmoid()[:, None], LABELS.to(dtype)) == pytest.approx(RIGHT)


@pytest.mark.sample(4)
@pytest.mark.parametrize("metric", ["f1", "precision", "recall", "auroc"])
def test_the_other_metrics_read_probabilities_likewise(metric):
    of_odds = measured(nn.BCEWithLogitsLoss(), LOG_ODDS, LABELS, metric)
    assert measured(F.binary_cross_entropy, LOG_ODDS.sigmoid(), LABELS, metric) == pytest.approx(of_odds, abs=1e-5)


def of_classes(shape, axis, seed=0):
    """Scores with classes at ``axis``, and targets of which about half are the class of the largest score."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=generator)
    best = scores.argmax(axis)
    drawn = torch.randint(shape[axis], best.shape, generator=generator)
    targets = torch.where(torch.rand(best.shape, generator=generator) < 0.5, best, drawn)
    return scores, targets, best == targets


def share(right, counted=None):
    return pytest.approx(float((right if counted is None else right[counted]).float().mean()), abs=1e-5)


SCORES, CLASSES, FOUND = of_classes((N, 5), 1)


@pytest.mark.parametrize(
    ("loss_fn", "outputs", "targets"),
    [
        (nn.CrossEntropyLoss(), SCORES, CLASSES),
        (nn.CrossEntropyLoss(label_smoothing=0.1), SCORES, CLASSES),
        (nn.MultiMarginLoss(), SCORES, CLASSES),
        (nn.NLLLoss(), SCORES.log_softmax(1), CLASSES),
        (lambda o, t: F.nll_loss(o.log(), t), SCORES.softmax(1), CLASSES),
        (lambda o, t: F.mse_loss(o, F.one_hot(t, 5).float()), SCORES, CLASSES),
        (lambda o, t: F.cross_entropy(o, t.squeeze(1)), SCORES, CLASSES[:, None]),
        (lambda o, t: F.cross_entropy(o, t.long()), SCORES, CLASSES.float()),
        (nn.CrossEntropyLoss(), SCORES, F.one_hot(CLASSES, 5).float()),
        (lambda o, t: F.cross_entropy(o["logits"], t), {"logits": SCORES, "cache": None}, CLASSES),
        (lambda o, t: F.cross_entropy(o["logits"], t), {"hidden": torch.zeros(N, 7), "logits": SCORES}, CLASSES),
    ],
)
@pytest.mark.sample(11)
def test_accuracy_of_classes_is_the_share_of_largest_scores(loss_fn, outputs, targets):
    assert measured(loss_fn, outputs, targets) == share(FOUND)


def picks(outputs, targets):
    counted = targets != -1
    return F.cross_entropy(outputs[counted], targets[counted])


@pytest.mark.parametrize(
    ("ignored", "loss_fn"),
    [
        (-100, nn.CrossEntropyLoss()),
        (-100, F.cross_entropy),
        (-100, lambda o, t: F.cross_entropy(o, t)),
        (255, nn.CrossEntropyLoss(ignore_index=255)),
        (255, functools.partial(F.cross_entropy, ignore_index=255)),
        (0, nn.CrossEntropyLoss(ignore_index=0)),
        (0, lambda o, t: F.cross_entropy(o, t, ignore_index=0)),
        (-1, picks),
    ],
)
@pytest.mark.sample(8)
def test_targets_that_the_loss_ignores_are_not_counted(ignored, loss_fn):
    targets = CLASSES.clone()
    targets[::3] = ignored
    assert measured(loss_fn, SCORES, targets) == share(FOUND, targets != ignored)


def flat(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def next_token(outputs, targets):
    return F.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


@pytest.mark.sample(9)
@pytest.mark.parametrize("classes", [2, 6, 9])
@pytest.mark.parametrize("loss_fn", [flat, lambda o, t: F.cross_entropy(o.transpose(1, 2), t), functools.partial(flat)])
def test_classes_of_tokens_may_be_the_last_dimension_even_with_as_many_tokens(classes, loss_fn):
    scores, targets, right = of_classes((N, 6, classes), 2)
    assert measured(loss_fn, scores, targets) == share(right)


@pytest.mark.parametrize("classes", [6, 9])
def test_classes_of_tokens_may_be_the_second_dimension(classes):
    scores, targets, right = of_classes((N, classes, 6), 1)
    assert measured(nn.CrossEntropyLoss(weight=torch.rand(classes) + 0.1), scores, targets) == share(right)


@pytest.mark.parametrize("padding", [-100, 0])
def test_padding_of_tokens_is_not_counted(padding):
    scores, targets, _ = of_classes((N, 6, 6), 2)
    targets[:, 4:], targets[5] = padding, padding
    loss_fn = functools.partial(F.cross_entropy, ignore_index=padding)
    found = measured(lambda o, t: loss_fn(o.flatten(0, 1), t.flatten()), scores, targets)
    assert found == share(scores.argmax(2) == targets, targets != padding)


def test_a_language_model_is_measured_on_the_next_token_like_its_loss():
    scores, targets, _ = of_classes((N, 6, 6), 2)
    assert measured(next_token, scores, targets) == share(scores[:, :-1].argmax(2) == targets[:, 1:])


def dice(outputs, targets):
    shares, wanted = outputs.softmax(1), F.one_hot(targets, 3).movedim(-1, 1).float()
    overlap, sizes = (shares * wanted).sum((2, 3)), (shares + wanted).sum((2, 3))
    return 1 - (2 * overlap / (sizes + 1e-6)).mean()


@pytest.mark.sample(4)
@pytest.mark.parametrize("size", [(4, 5), (3, 3)])
@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), dice])
def test_pixels_are_counted_one_by_one(loss_fn, size):
    scores, targets, right = of_classes((N, 3, *size), 1)
    assert measured(loss_fn, scores, targets) == share(right)
    last = scores.movedim(1, -1).contiguous()
    assert measured(lambda o, t: loss_fn(o.movedim(-1, 1), t), last, targets) == share(right)


def test_one_score_for_each_pixel_is_a_binary_task():
    scores = torch.randn(N, 1, 4, 4)
    targets = (torch.rand(scores.shape) < scores.sigmoid()).float()
    right = (scores > 0) == (targets > 0)
    assert measured(nn.BCEWithLogitsLoss(), scores, targets) == share(right)
    squeezed = measured(lambda o, t: F.binary_cross_entropy(o[:, 0], t), scores.sigmoid(), targets[:, 0])
    assert squeezed == share(right)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6), st.sampled_from([(), (3,), (4, 2)]), st.booleans())
def test_any_layout_of_a_cross_entropy_is_read_right(seed, classes, places, last):
    axis = 1 + len(places) if last else 1
    shape = (N, *places, classes) if last else (N, classes, *places)
    scores, targets, right = of_classes(shape, axis, seed)
    metrics = MetricSet("accuracy", loss_fn=lambda o, t: F.cross_entropy(o.movedim(axis, 1), t))
    metrics.update(scores, targets)
    assert metrics.compute()["accuracy"] == share(right)


def masked(outputs, targets):
    counted = ~targets.isnan()
    return ((outputs[counted] - targets[counted]) ** 2).mean()


@pytest.mark.sample(2)
@pytest.mark.parametrize("loss_fn", [masked, lambda o, t: (torch.nan_to_num(o - t) ** 2).mean()])
def test_errors_of_numbers_exclude_targets_that_the_loss_ignores(loss_fn):
    outputs, targets = torch.randn(N, 2), torch.randn(N, 2)
    targets[::4], targets[1, 0] = math.nan, math.nan
    counted = ~targets.isnan()
    expected = float((outputs - targets)[counted].abs().mean())
    assert measured(loss_fn, outputs, targets, "mae") == pytest.approx(expected, rel=1e-5)


def test_a_column_of_outputs_is_compared_with_targets_without_one():
    outputs, targets = torch.randn(N, 1), torch.randn(N)
    found = measured(lambda o, t: F.mse_loss(o[:, 0], t), outputs, targets, "mse")
    assert found == pytest.approx(float(F.mse_loss(outputs[:, 0], targets)), rel=1e-5)


@pytest.mark.parametrize(
    ("loss_fn", "outputs", "targets", "message"),
    [
        (nn.BCEWithLogitsLoss(), SCORES, F.one_hot(CLASSES, 5).float(), "MultilabelAccuracy"),
        (nn.CrossEntropyLoss(), SCORES, CLASSES + 1, r"targets must lie in \[0, 5\)"),
        (nn.MSELoss(), LOG_ODDS, LOG_ODDS, "take class indices as targets, got"),
        (lambda o, t: o.norm(), SCORES, CLASSES, "does not raise the score of each target's class"),
        (lambda o, t: o.pow(2).mean(), LOG_ODDS, LABELS, "does not compare these outputs"),
        (
            lambda o, t: torch.zeros(()),
            LOG_ODDS.sigmoid(),
            LABELS,
            "cannot determine whether the outputs are probabilities or log odds",
        ),
        (lambda o, t: torch.zeros(()), torch.zeros(N, 6, 4), torch.zeros(N, 6), "does the network compute the loss"),
        (nn.CrossEntropyLoss(), torch.zeros(N, 6, 4), torch.zeros(N, 5), "got outputs of shape"),
        (lambda o, t: F.cross_entropy(o, t["y"]), SCORES, {"y": CLASSES}, "the targets as one tensor"),
    ],
)
def test_outputs_that_cannot_be_read_are_refused_with_the_remedy(loss_fn, outputs, targets, message):
    with pytest.raises(DataError, match=message):
        MetricSet("accuracy", loss_fn=loss_fn).update(outputs, targets)


def test_a_loss_that_refuses_synthetic_targets_is_tried_with_those_of_the_data():
    def particular(outputs, targets):
        if targets.max().item() > 2:
            raise ValueError("no such class in the data")
        return flat(outputs, targets)

    scores, targets, _ = of_classes((N, 6, 6), 2)
    right = scores.argmax(2) == (targets := targets % 3)
    metrics = MetricSet("accuracy", loss_fn=particular)
    metrics.update(scores, targets)
    assert metrics.compute()["accuracy"] == share(right)
