from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mechanisms.engines import ExampleLosses
from monitors.errors import UnsupportedModuleError

OUTPUTS, CLASSES = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (nn.CrossEntropyLoss, CLASSES),
        (nn.MSELoss, torch.randn(5, 3)),
        (nn.SmoothL1Loss, torch.randn(5, 3)),
        (nn.BCEWithLogitsLoss, torch.rand(5, 3)),
    ],
)
def test_library_losses_equal_those_of_a_batch_of_one(make, targets, reduction):
    found = ExampleLosses(make(reduction=reduction))(OUTPUTS, targets)
    alone = make(reduction="sum" if reduction == "sum" else "mean")
    assert torch.allclose(found, torch.stack([alone(OUTPUTS[i : i + 1], targets[i : i + 1]) for i in range(5)]))


def test_class_weights_are_not_normalised():
    weight = torch.tensor([1.0, 2.0, 4.0])
    found = ExampleLosses(nn.CrossEntropyLoss(weight=weight))(OUTPUTS, CLASSES)
    assert torch.allclose(found, F.cross_entropy(OUTPUTS, CLASSES, reduction="none") * weight[CLASSES])


def test_losses_with_a_reduction_are_vectorised_without_changing_the_users_loss():
    module = nn.CrossEntropyLoss()
    assert ExampleLosses(module).vectorised
    assert module.reduction == "mean"
    assert ExampleLosses(F.cross_entropy).vectorised
    assert torch.allclose(ExampleLosses(F.mse_loss)(OUTPUTS, OUTPUTS + 2), torch.full((5,), 4.0))


@given(st.integers(1, 6))
def test_any_other_callable_is_called_on_one_example_at_a_time(size):
    def own(outputs, targets):
        assert len(outputs) == 1
        return ((outputs - targets) ** 2).mean()

    losses = ExampleLosses(own)
    assert not losses.vectorised
    x, y = torch.randn(size, 3), torch.randn(size, 3)
    assert torch.allclose(losses(x, y), ((x - y) ** 2).mean(1))


def test_pixels_are_averaged_within_an_example():
    found = ExampleLosses(nn.MSELoss())(
        torch.zeros(2, 3, 4), torch.ones(2, 3, 4) * torch.tensor([1.0, 2.0]).view(2, 1, 1)
    )
    assert torch.allclose(found, torch.tensor([1.0, 4.0]))


class Deaf(nn.Module):
    """A loss whose forward pass ignores its reduction."""

    def __init__(self, kind: str, reduction: str = "mean") -> None:
        super().__init__()
        self.kind, self.reduction = kind, reduction

    def forward(self, outputs, targets):
        if self.kind == "refuses" and self.reduction == "none":
            raise NotImplementedError("reduction='none'")
        if self.kind == "flattens":
            known = self.reduction if self.reduction in ("none", "sum") else "mean"
            return F.mse_loss(outputs.flatten(), targets.flatten(), reduction=known)
        return F.mse_loss(outputs, targets)


@pytest.mark.parametrize("reduction", ["mean", "sum", "weighted_mean"])
@pytest.mark.parametrize("kind", ["unread", "refuses", "flattens"])
def test_a_loss_that_ignores_its_reduction_is_called_on_one_example_at_a_time(kind, reduction):
    loss, targets = Deaf(kind, reduction), torch.randn(5, 3)
    alone = torch.stack([loss(OUTPUTS[i : i + 1], targets[i : i + 1]) for i in range(5)])
    assert torch.allclose(ExampleLosses(loss)(OUTPUTS, targets), alone)
    assert torch.allclose(ExampleLosses(loss)(OUTPUTS[:1], targets[:1]), alone[:1])


def test_a_function_that_ignores_its_reduction_is_called_on_one_example_at_a_time():
    def stubborn(outputs, targets, reduction="mean"):
        del targets, reduction
        return outputs.mean()

    assert torch.allclose(ExampleLosses(stubborn)(OUTPUTS, CLASSES), OUTPUTS.mean(1))


def test_a_loss_with_several_numbers_for_one_example_is_refused():
    with pytest.raises(UnsupportedModuleError, match="one number for a batch of one"):
        ExampleLosses(lambda outputs, targets: outputs - targets)(OUTPUTS, torch.randn(5, 3))


def test_a_loss_must_be_callable():
    with pytest.raises(ValueError, match="must be callable"):
        ExampleLosses("cross_entropy")


def test_one_example_does_not_decide_how_later_ones_are_treated():
    class OfThoseMarked(nn.Module):
        reduction = "mean"

        def forward(self, outputs, targets):
            losses = outputs[targets.bool()]
            return losses if self.reduction == "none" else 9 * losses.mean()

    losses, one = ExampleLosses(OfThoseMarked()), (torch.ones(1, 3), torch.tensor([[1, 0, 0]]))
    assert losses(*one).item() == 1
    assert losses(torch.ones(1, 3), torch.tensor([[1, 1, 0]])).item() == 9
    assert losses(*one).item() == 1


def test_the_mean_of_a_batch_of_one_equals_torchs_even_if_all_targets_are_ignored():
    scores = torch.randn(3, 4, 5)
    y = torch.tensor([[0, 1, -100, 2, 3], [-100] * 5, [3, 2, 1, 0, 0]])
    losses = ExampleLosses(nn.CrossEntropyLoss())(scores, y)
    expected = [F.cross_entropy(scores[row : row + 1], y[row : row + 1]) for row in (0, 2)]
    assert torch.allclose(losses[[0, 2]], torch.stack(expected))
    assert losses[1] == 0


def test_probabilities_as_targets_are_averaged_over_positions():
    scores, y = torch.randn(2, 4, 5), torch.randn(2, 4, 5).softmax(1)
    losses = ExampleLosses(nn.CrossEntropyLoss())(scores, y)
    assert torch.allclose(losses, F.cross_entropy(scores, y, reduction="none").mean(1))


@pytest.mark.parametrize("loss_fn", [nn.KLDivLoss(reduction="batchmean"), partial(F.kl_div, reduction="batchmean")])
def test_batchmean_sums_within_an_example(loss_fn):
    scores, y = torch.randn(4, 3).log_softmax(1), torch.randn(4, 3).softmax(1)
    assert torch.allclose(ExampleLosses(loss_fn)(scores, y).mean(), loss_fn(scores, y))


def test_a_reduction_of_unknown_meaning_is_refused():
    loss_fn = nn.MSELoss()
    loss_fn.reduction = "median"
    with pytest.raises(ValueError, match="median is not a valid value for reduction"):
        ExampleLosses(loss_fn)(torch.zeros(2, 3), torch.zeros(2, 3))
