"""Networks that were trained privately bring their ledger with them, wherever a training keeps them."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.data import DataLoader, Dataset

from dpmodel import DPModel
from dpmodel.claims.held import held_by
from dpmodel.prediction.logits import DPLogits


@pytest.fixture
def trained(make_model, loader):
    network = nn.Linear(4, 3)
    make_model(network).fit(loader)
    return network


class Hiding(nn.Module):
    def __init__(self, hidden, call):
        super().__init__()
        self.layer, self.hidden, self.call = nn.Linear(4, 3), hidden, call

    def forward(self, x):
        return self.layer(x) + self.call(self.hidden)(x)


WAYS = {
    "nested": (lambda net: {"parts": [net]}, lambda held: held["parts"][0]),
    "object": (lambda net: SimpleNamespace(net=net), lambda held: held.net),
    "method": (lambda net: net.forward, lambda held: held),
    "closure": (lambda net: lambda x: net(x), lambda held: held),
    "partial": (lambda net: functools.partial(nn.functional.linear, weight=net.weight), lambda held: held),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_trained_network_that_another_hides_brings_its_ledger(make_model, trained, way):
    hide, call = WAYS[way]
    assert make_model(Hiding(hide(trained), call)).ledger.total == 4


class Distilled(nn.Module):
    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs + self.teacher.weight.sum(), targets)


@pytest.mark.parametrize("of", [Distilled, lambda net: lambda out, y: (out - net.bias).square().mean(), "mixed"])
def test_a_loss_that_holds_a_trained_network_brings_its_ledger(make_model, loader, trained, of):
    loss_fn = functools.partial(Distilled.forward, Distilled(trained)) if of == "mixed" else of(trained)
    trained.requires_grad_(False)
    student = make_model(nn.Linear(4, 3), loss_fn)
    student.fit(loader)
    assert student.ledger.total == 8


class Encoded(Dataset):
    def __init__(self, inner, encoder):
        self.inner, self.encoder = inner, encoder

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, row):
        x, y = self.inner[row]
        return self.encoder(x).detach(), y


def test_data_that_pass_through_a_trained_network_bring_its_ledger(make_model, loader, trained):
    second = make_model(nn.Linear(3, 3))
    assert second.ledger.total == 0
    second.fit(DataLoader(Encoded(loader.dataset, trained), batch_size=16))
    assert second.ledger.total == 8


@pytest.mark.parametrize("removed", [True, False])
def test_parameters_that_torch_makes_of_trained_ones_bring_their_ledger(make_model, loader, removed):
    network = nn.Sequential(nn.Linear(4, 3, bias=False))
    if removed:
        parametrizations.orthogonal(network[0])
    make_model(network, engine="loop").fit(loader)
    if removed:
        parametrize.remove_parametrizations(network[0], "weight")
    else:
        parametrizations.weight_norm(network[0])
    assert make_model(network).ledger.total == 4


class Adapting(torch.optim.SGD):
    """Keeps what it computes from gradients among its options, as D-Adaptation does, or in an attribute."""

    def __init__(self, params, place):
        super().__init__(params, lr=0.1)
        self.place, self.found = place, 0.0
        self.param_groups[0] |= {"found": 0.0, "history": torch.ones(2000), "sizes": []}

    def step(self, closure=None):
        size = sum(float(parameter.grad.norm()) for parameter in self.param_groups[0]["params"])
        if self.place == "option":
            self.param_groups[0]["found"] += size
        elif self.place == "tensor":
            self.param_groups[0]["history"][700] += 1e-6 * size
        elif self.place == "list":
            self.param_groups[0]["sizes"].append(size)
        elif self.place == "attribute":
            self.found += size
        return super().step(closure)


@pytest.mark.parametrize(
    ("place", "total"), [("option", 4), ("tensor", 4), ("list", 4), ("attribute", 4), ("nowhere", 0)]
)
def test_reset_weights_continue_the_ledger_that_the_options_of_the_optimizer_carry(make_model, loader, place, total):
    network = nn.Linear(4, 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = Adapting(network.parameters(), place)
    make_model(network, optimizer=optimizer).fit(loader)
    network.load_state_dict(before)
    optimizer.param_groups[0]["lr"] = 0.05  # as a schedule does
    assert DPModel(network, nn.CrossEntropyLoss(), optimizer).ledger.total == total


def test_a_network_that_hides_an_untrained_one_does_not_answer_for_free(make_model, loader):
    hiding = Hiding(SimpleNamespace(net=nn.Linear(4, 3)), lambda held: held.net)
    make_model(hiding.layer).fit(loader)
    with pytest.raises(ValueError, match="budget"):
        DPLogits(hiding)


def test_each_tensor_and_module_is_found_once():
    layer = nn.Linear(2, 2)
    found = held_by(layer, [layer, layer.weight], lambda: layer)
    assert found.modules == [layer]
    assert [id(value) for value in found] == [id(layer.weight), id(layer.bias)]
