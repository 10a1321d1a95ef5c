import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dpmodel.metrics import MetricSet
from dpmodel.metrics.evaluation_losses import EvaluationLosses
from mechanisms.engines import ExampleLosses

WEIGHT = torch.tensor([1.0, 5.0, 20.0])


def normalised(outputs, targets):
    return F.cross_entropy(outputs, targets, weight=WEIGHT)


def summed_bound(outputs, targets):
    """Sum over the batch, as for a variational autoencoder."""
    return F.mse_loss(outputs, F.one_hot(targets, 3).float(), reduction="sum") + 0.5 * outputs.pow(2).sum()


def reads_numbers(outputs, targets):
    return F.cross_entropy(outputs, targets) if targets.max().item() >= 0 else outputs.sum() * 0.0


def picks_rows(outputs, targets):
    counted = targets != 0
    return F.cross_entropy(outputs[counted], targets[counted])


LOSSES = [
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(reduction="sum"),
    nn.CrossEntropyLoss(reduction="none"),
    nn.CrossEntropyLoss(weight=WEIGHT),
    nn.CrossEntropyLoss(ignore_index=0),
    F.cross_entropy,
    functools.partial(F.cross_entropy, weight=WEIGHT),
    normalised,
    summed_bound,
    reads_numbers,
    picks_rows,
    lambda outputs, targets: F.cross_entropy(outputs, targets, ignore_index=0),
    lambda outputs, targets: ((outputs[:, :1] - targets) ** 2).mean(),  # over a batch it would broadcast
]


@pytest.mark.parametrize("loss_fn", LOSSES)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 9), min_size=1, max_size=4))
@pytest.mark.sample(13)
def test_the_mean_loss_does_not_depend_on_the_batches(loss_fn, seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(sum(sizes), 3, generator=generator)
    targets = torch.randint(3, (sum(sizes),), generator=generator)
    metrics = MetricSet("loss", loss_fn=loss_fn)
    for rows in torch.arange(sum(sizes)).split(sizes):
        metrics.update(outputs[rows], targets[rows])
    alone = [ExampleLosses(loss_fn)(outputs[row : row + 1], targets[row : row + 1]) for row in range(len(targets))]
    expected = torch.nan_to_num(torch.cat(alone)).mean()
    assert metrics.compute()["loss"] == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "make", [lambda **kw: nn.CrossEntropyLoss(**kw), lambda **kw: functools.partial(F.cross_entropy, **kw)]
)
def test_an_example_whose_targets_are_all_ignored_has_loss_zero_in_each_form_of_the_loss(make):
    outputs, targets = torch.randn(3, 4, 5), torch.randint(0, 4, (3, 5))
    targets[1], targets[2, 2:] = -100, -100
    found = EvaluationLosses(make())
    whole = EvaluationLosses(lambda outputs, targets: F.cross_entropy(outputs, targets))
    assert found.of_rows(outputs, targets)[1] == 0
    torch.testing.assert_close(found.of_rows(outputs, targets), whole.of_rows(outputs, targets))


def test_a_diverged_loss_stays_nan():
    outputs, targets = torch.randn(3, 2), torch.tensor([0, 1, 1])
    outputs[1] = torch.nan
    found = EvaluationLosses(nn.CrossEntropyLoss()).of_rows(outputs, targets)
    assert found.isnan().tolist() == [False, True, False]
    logarithm = EvaluationLosses(lambda outputs, targets: outputs.log().sum())
    assert bool(logarithm.of_rows(torch.tensor([[-1.0], [1.0]]), targets[:2]).isnan()[0])


class OwnLoss(nn.Module):
    def __init__(self, beside):
        super().__init__()
        self.scores, self.beside = nn.Linear(4, 3), beside

    def forward(self, x, labels):
        scores = self.scores(x)
        loss = F.cross_entropy(scores, labels)
        return {"loss": loss, "scores": scores} if self.beside else loss


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("reads", [True, False])
def test_a_loss_that_the_network_computes_is_computed_for_each_example(beside, reads):
    def loss_fn(outputs, targets):
        loss = outputs["loss"] if beside else outputs
        return loss * (targets.sum().item() >= 0 if reads else 1.0)

    network, x, y = OwnLoss(beside), torch.randn(7, 4), torch.randint(0, 3, (7,))
    with torch.no_grad():
        found = EvaluationLosses(loss_fn)(network, (x, y), network(x, y), y)
        torch.testing.assert_close(found, F.cross_entropy(network.scores(x), y, reduction="none"))


def test_a_later_change_of_the_loss_takes_effect():
    loss_fn = nn.CrossEntropyLoss()
    losses = EvaluationLosses(loss_fn)
    loss_fn.label_smoothing = 0.5
    outputs, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(losses.of_rows(outputs, targets).mean(), loss_fn(outputs, targets))


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls, self.last = 0, None

    def forward(self, outputs, targets):
        self.calls += 1
        self.last = outputs
        return F.cross_entropy(outputs, targets)


@pytest.mark.parametrize("size", [1, 5])
def test_the_state_of_a_loss_is_restored(size):
    loss_fn = Remembering()
    metrics = MetricSet(["accuracy", "loss"], loss_fn=loss_fn)
    metrics.update(torch.randn(size, 3), torch.randint(3, (size,)))
    assert (loss_fn.calls, loss_fn.last) == (0, None)


def test_the_loss_raises_in_its_own_words_when_it_fails():
    with pytest.raises(AttributeError, match="missing"):
        EvaluationLosses(lambda outputs, targets: outputs.missing).of_rows(torch.zeros(2, 2), torch.zeros(2))
