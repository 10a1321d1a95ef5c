"""The error for an argument that DPModel does not have names the argument to use."""

import pytest
import torch
from torch import nn

from dpmodel import DPModel


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"accountant": "prv"}, r"accountant=.prv.: the accountant is part of the statement: model\.privacy_spent"),
        ({"target_epsilon": 3.0}, r"target_epsilon=3\.0: compute the noise first: noise_mech=noise_for_epsilon"),
        ({"epsilon": 3.0}, r"noise_for_epsilon\(target_epsilon, delta, loader, epochs\)"),
        ({"noise_multiplier": 1.1}, "initial_noise_multiplier"),
        ({"max_grad_norm": 1.0}, "pass norm_bound="),
        ({"target_delta": 1e-5}, r"model\.privacy_spent\(delta\)"),
        ({"epochs": 3}, r"fit\(loader, epochs\)"),
        ({"batch_size": 3}, r"poisson_loader\(dataset, batch_size\)"),
        ({"norm_bond": 1.0}, "did you mean 'norm_bound'"),
        ({"zzz": 1.0}, "it takes network, loss_fn, optimizer"),
    ],
)
def test_the_error_for_an_unknown_argument_says_what_to_use(argument, words):
    network = nn.Linear(2, 1)
    with pytest.raises(TypeError, match=words):
        DPModel(network, nn.MSELoss(), torch.optim.SGD(network.parameters(), lr=0.1), **argument)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"target_epsilon": 3.0}, r"fit has no argument target_epsilon=3\.0: compute the noise first"),
        ({"delta": 1e-5}, r"model\.privacy_spent\(delta\)"),
        ({"ouput": "runs/a"}, "did you mean 'output'"),
        ({"zzz": 1.0}, "it takes loader, epochs, valid_loader, callbacks, keeper, output$"),
    ],
)
@pytest.mark.parametrize("way", ["fit", "train"])
def test_the_error_for_an_unknown_argument_of_fit_says_what_to_use(argument, words, way):
    network = nn.Linear(2, 1)
    model = DPModel(network, nn.MSELoss(), torch.optim.SGD(network.parameters(), lr=0.1))
    given = {"fit": (None,), "train": (1, None)}[way]
    with pytest.raises(TypeError, match=words):
        getattr(model, way)(*given, **argument)


def test_a_path_is_refused_as_a_keeper():
    network = nn.Linear(2, 1)
    model = DPModel(network, nn.MSELoss(), torch.optim.SGD(network.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"write keeper=StateKeeper\('runs/a'\)"):
        model.fit(None, keeper="runs/a")
