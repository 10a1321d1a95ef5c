"""A refusal says that private examples were read if, and only if, they were."""

import pytest
import torch
from torch import nn

from dpmodel import poisson_loader
from dpmodel.preflight.refusal import HAS_READ, reading_examples, say_also
from monitors.errors import DPModelError


def test_a_sentence_is_added_once_and_further_arguments_are_kept():
    error = OSError("no target.", 3)
    error.args = ("no target.", 3)
    say_also(error, HAS_READ)
    say_also(error, HAS_READ)
    assert error.args[1] == 3
    assert error.args[0].count(HAS_READ) == 1


def test_errors_that_are_not_refusals_are_unchanged():
    with pytest.raises(KeyError) as caught, reading_examples():
        raise KeyError("x")
    assert caught.value.args == ("x",)


class Detached(nn.CrossEntropyLoss):
    def forward(self, outputs, targets):
        return super().forward(outputs.detach(), targets)


@pytest.mark.parametrize("looked", [True, False])
def test_fit_says_whether_a_refusal_is_based_on_private_examples(make_model, make_data, looked):
    if looked:
        model = make_model(loss_fn=Detached())
    else:
        network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        model = make_model(network, optimizer=torch.optim.SGD(network.parameters(), lr=0.1))
    with pytest.raises(DPModelError) as caught:
        model.fit(poisson_loader(make_data(), batch_size=16))
    assert (HAS_READ in str(caught.value)) == looked
    assert model.ledger.total == 0
