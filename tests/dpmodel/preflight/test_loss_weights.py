from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from dpmodel.preflight.loss_weights import CANCELLED, NORMALISED, weight_notes
from mechanisms.engines import Batch

CLASSES = 3
WEIGHT = torch.tensor([1.0, 2.0, 8.0])
PLAIN = nn.CrossEntropyLoss(weight=WEIGHT)


class Wrapped(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.entropy = nn.CrossEntropyLoss(**options)

    def forward(self, outputs, targets):
        return self.entropy(outputs, targets)


def own_mean(outputs, targets):
    losses = functional.cross_entropy(outputs, targets, reduction="none") * WEIGHT[targets]
    return losses.sum() / WEIGHT[targets].sum()


def notes(loss_fn, bound=100.0, seed=0, count=16):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(count, CLASSES, generator=generator)
    targets = torch.arange(count) % CLASSES
    return list(weight_notes(loss_fn, Batch(outputs, targets), bound))


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda outputs, targets: functional.cross_entropy(outputs, targets, weight=WEIGHT),
        lambda outputs, targets: functional.nll_loss(outputs.log_softmax(1), targets, weight=WEIGHT),
        lambda outputs, targets: functional.cross_entropy(outputs, targets, weight=WEIGHT, label_smoothing=0.1),
        lambda outputs, targets: PLAIN(outputs, targets),
        Wrapped(weight=WEIGHT),
    ],
)
def test_class_weights_that_one_example_cancels_are_announced(loss_fn):
    assert notes(loss_fn) == [CANCELLED]


@pytest.mark.parametrize(
    "loss_fn",
    [
        PLAIN,
        partial(functional.cross_entropy, weight=WEIGHT),
        functional.cross_entropy,
        Wrapped(),
        Wrapped(weight=WEIGHT, reduction="sum"),
        nn.MultiMarginLoss(weight=WEIGHT),
        lambda outputs, targets: functional.cross_entropy(outputs, targets, weight=WEIGHT, reduction="none").mean(),
        lambda outputs, targets: functional.cross_entropy(outputs, targets, reduction="sum") / 16,
        lambda outputs, targets: functional.cross_entropy(outputs, targets) + 0.5 * WEIGHT.square().sum(),
        lambda outputs, targets: (outputs.sum(1) - targets).square().mean(),
        lambda outputs, targets: functional.dropout(outputs).square().mean(),
        lambda outputs, targets: torch.tensor(float("nan")) * outputs.sum(),
        lambda outputs, targets: outputs.missing,
    ],
)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_losses_whose_weights_have_their_effect_need_no_note(loss_fn, seed):
    assert notes(loss_fn, seed=seed) == []


@pytest.mark.parametrize(
    "loss_fn", [own_mean, lambda outputs, targets: (outputs.sum(1) - targets).square().mean().sqrt()]
)
def test_a_loss_of_two_that_is_neither_sum_nor_mean_of_their_losses_is_announced(loss_fn):
    assert notes(loss_fn) == [NORMALISED]


@pytest.mark.parametrize(
    ("loss_fn", "largest"),
    [
        (PLAIN, 8),
        (partial(functional.cross_entropy, weight=WEIGHT), 8),
        (
            lambda outputs, targets: functional.cross_entropy(outputs, targets, weight=WEIGHT, reduction="none").mean(),
            8,
        ),
        (
            lambda outputs, targets: functional.binary_cross_entropy_with_logits(
                outputs, functional.one_hot(targets, CLASSES).float(), pos_weight=torch.tensor(20.0)
            ),
            20,
        ),
    ],
)
def test_class_weights_above_the_bound_are_announced(loss_fn, largest):
    (note,) = notes(loss_fn, bound=1.0)
    assert note.startswith(f"the loss has class weights up to {largest}, ")
    assert "clipped to norm_bound=1, so" in note
    assert notes(loss_fn, bound=float(largest)) == []


def test_equal_weights_and_weights_within_the_bound_need_no_note():
    assert notes(nn.CrossEntropyLoss(weight=torch.full((CLASSES,), 5.0)), bound=1.0) == []
    assert notes(nn.CrossEntropyLoss(weight=WEIGHT / 8), bound=1.0) == []


def test_fit_announces_class_weights_before_the_first_step_even_if_neighbours_share_a_class(make_model, capsys):
    targets = torch.arange(60) // 20
    loader = DataLoader(TensorDataset(torch.randn(60, 4), targets), batch_size=15)
    make_model(loss_fn=own_mean).fit(loader)
    assert NORMALISED in capsys.readouterr().out
    make_model(loss_fn=nn.CrossEntropyLoss()).fit(loader)
    assert "loss" not in capsys.readouterr().out
