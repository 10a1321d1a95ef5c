from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from dpmodel.preflight.loss_remedies import remedy
from mechanisms.engines import Batch
from monitors.errors import DataError, UnsupportedModuleError


class Detached(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Chosen(nn.Linear):
    def forward(self, x):
        return F.one_hot(super().forward(x).argmax(1), 3).float()


class Elsewhere(nn.Module):
    """Computes its output without any trained parameter."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(4, 3)

    def forward(self, x):
        return (x[:, :3] * 2).requires_grad_()


@pytest.mark.sample(12)
@pytest.mark.parametrize("engine", ["auto", "bookkeeping", "vmap", "loop"])
@pytest.mark.parametrize("network", [lambda: Detached(4, 3), lambda: Chosen(4, 3), Elsewhere])
def test_a_network_whose_parameters_change_nothing_is_refused(make_model, loader, network, engine):
    model = make_model(network(), engine=engine)
    with pytest.raises(UnsupportedModuleError, match="depends on no trainable parameter"):
        model.fit(loader)
    assert model.ledger.total == 0


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda o, t: F.cross_entropy(o, t).detach(), UnsupportedModuleError, "depends on no trainable parameter"),
        (
            lambda o, t: F.cross_entropy(o, t).item(),
            UnsupportedModuleError,
            "must return a tensor, got .* of type float",
        ),
        (lambda o: o.sum(), DataError, r"loss_fn\(outputs, targets\) fails for outputs float32 of shape \(3,\)"),
        (lambda o, t: o.missing, DataError, "has no attribute 'missing'"),
    ],
)
def test_the_error_for_a_loss_that_cannot_train_shows_its_arguments(make_model, loader, loss_fn, error, message):
    model = make_model(loss_fn=loss_fn)
    with pytest.raises(error, match=message):
        model.fit(loader)
    assert model.ledger.total == 0


def test_the_remedy_for_targets_in_a_column_is_to_squeeze_them(make_model):
    data = TensorDataset(torch.randn(32, 4), torch.randint(0, 3, (32, 1)))
    with pytest.raises(DataError, match=r"targets\.squeeze\(1\)"):
        make_model().fit(DataLoader(data, batch_size=8))


def test_examples_without_a_finite_gradient_are_announced_once_and_counted(make_model, make_data, capsys):
    data = make_data(n=64)
    data.tensors[0][::4] = torch.nan
    make_model().fit(DataLoader(data, batch_size=16), epochs=3)
    shown = capsys.readouterr().out
    assert shown.count("check the data for NaN and infinite numbers") == 1
    assert "without a finite gradient were left out in all" in shown


class Packed(nn.Module):
    """Sequences of several lengths, packed in order of length, with dropout between the recurrent layers."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 4, num_layers=2, dropout=0.3, batch_first=True), nn.Linear(4, 3)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.cell(packed)[1][0][-1])


def test_a_packed_network_with_dropout_between_its_layers_trains(make_model):
    data = TensorDataset(torch.randn(24, 5, 2), torch.randint(1, 6, (24,)), torch.randint(0, 3, (24,)))
    model = make_model(Packed())
    model.fit(DataLoader(data, batch_size=8), epochs=1)
    assert model.ledger.total == 3
    assert model.network.cell.dropout == 0.3


@pytest.mark.parametrize("loss_fn", [nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss(reduction="sum")])
def test_the_remedy_for_integers_in_a_binary_loss_is_float(make_model, loss_fn):
    data = TensorDataset(torch.randn(32, 4), torch.randint(0, 2, (32, 1)))
    model = make_model(nn.Linear(4, 1), loss_fn=loss_fn)
    with pytest.raises(DataError, match=r"pass targets\.float\(\)") as caught:
        model.fit(DataLoader(data, batch_size=8))
    assert "squeeze" not in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "targets", "loss_fn", "words"),
    [
        (torch.zeros(1, 1), torch.zeros(1), F.binary_cross_entropy_with_logits, "targets.unsqueeze(1)"),
        (torch.zeros(1, 1), torch.zeros(1).long(), nn.BCEWithLogitsLoss(), "targets.unsqueeze(1).float()"),
        (torch.zeros(1, 3), torch.zeros(1, 1).int(), nn.CrossEntropyLoss(), "targets.squeeze(1).long()"),
        (torch.zeros(1, 3), torch.zeros(1, dtype=torch.float64), nn.NLLLoss(), "targets.long()"),
    ],
)
def test_the_remedy_is_the_first_conversion_of_the_targets_that_works(outputs, targets, loss_fn, words):
    assert remedy(loss_fn, outputs, targets).endswith(f"pass {words}")


def test_there_is_no_remedy_if_the_targets_are_not_the_cause():
    assert remedy(lambda outputs, targets: outputs.missing, torch.zeros(1, 1), torch.zeros(1)) == ""
    assert remedy(nn.MSELoss(), torch.zeros(1, 1), torch.zeros(1, 1)) == ""
    assert remedy(nn.MSELoss(), torch.zeros(1, 1), {"y": torch.zeros(1, 1)}) == ""


class Views(nn.Module):
    """Two views of an example, each projected to the sphere."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return F.normalize(self.one(x), dim=1), F.normalize(self.two(x), dim=1)


def ntxent(outputs, targets):
    both = torch.cat(outputs)
    likeness = (both @ both.T).masked_fill(torch.eye(len(both), dtype=torch.bool), -1e9)
    return F.cross_entropy(likeness, (torch.arange(len(both)) + len(targets)) % len(both))


def clip(outputs, targets):
    likeness = outputs[0] @ outputs[1].T
    return F.cross_entropy(likeness, torch.arange(len(targets))) + F.cross_entropy(
        likeness.T, torch.arange(len(targets))
    )


def batch_hard(outputs, targets):
    apart, same = torch.cdist(outputs[0], outputs[1]), targets[:, None] == targets[None]
    return F.relu((apart * same).max(1).values - (apart + 1e6 * same).min(1).values + 1.0).mean()


def cox(outputs, targets):
    risk = outputs[0][:, 0][targets.float().argsort()]
    return (torch.logcumsumexp(risk, 0) - risk).mean()


def standardised(outputs, targets):
    one = (outputs[0] - outputs[0].mean(0)) / outputs[0].std(0)
    return (one.T @ outputs[1] / len(targets) - torch.eye(3)).square().sum()


@pytest.mark.sample(5)
@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("loss_fn", [ntxent, clip, batch_hard, cox, standardised])
def test_a_loss_that_needs_other_examples_is_refused_with_the_reason(make_model, loader, loss_fn):
    model = make_model(Views(), loss_fn=loss_fn)
    with pytest.raises(UnsupportedModuleError, match=r"the loss needs other examples: its gradient is .*zero"):
        model.fit(loader)
    assert model.ledger.total == 0


def test_the_error_for_a_loss_that_fails_on_a_single_example_says_that_it_needs_others(make_model, loader):
    def paired(outputs, targets):
        return F.pdist(outputs)[0] * targets.sum()

    with pytest.raises(DataError, match="it works with several examples, so it needs others"):
        make_model(loss_fn=paired).fit(loader)


class Signs(nn.Linear):
    def forward(self, x):
        return super().forward(x).sign()


def test_a_network_that_passes_no_gradient_is_announced(make_model, loader, capsys):
    make_model(Signs(4, 3)).fit(loader)
    assert "exactly zero for the 32 examples that were tried" in capsys.readouterr().out


@pytest.mark.sample(3)
@pytest.mark.parametrize("labelled", [0, 1, 2])
def test_a_single_example_does_not_decide_a_refusal(make_model, loader, labelled):
    """A loss whose gradient is zero for single examples except for those of class 2, which are few."""

    def coupled(outputs, targets):
        alone = (outputs[targets == 2] ** 2).sum()
        return alone + ((outputs[:, None] - outputs[None]) ** 2).mean()

    x = torch.randn(64, 4)
    y = torch.zeros(64, dtype=torch.int64)
    y[[0, -1][:labelled]] = 2
    model = make_model(loss_fn=coupled)
    fit = partial(model.fit, DataLoader(TensorDataset(x, y), batch_size=16))
    if labelled < 2:
        with pytest.raises(UnsupportedModuleError, match="needs other examples"):
            fit()
    else:
        fit()


def test_targets_that_the_loss_ignores_are_accepted(make_model, make_data, capsys):
    data = make_data(n=64)
    data.tensors[1][torch.arange(64) != 5] = -100
    assert len(make_model().fit(DataLoader(data, batch_size=16))) == 1
    assert "exactly zero for the 32 examples that were tried" in capsys.readouterr().out


def test_zero_weights_are_accepted(make_model, loader, capsys):
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    make_model(network, loss_fn=lambda o, t: (o**2).mean()).fit(loader)
    assert "zero" not in capsys.readouterr().out


class Sixteen(nn.Module):
    """A network with a batch size written into it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x) + torch.zeros(16, 3)


@pytest.mark.parametrize(
    ("network", "loss_fn", "what"),
    [
        (Sixteen, nn.CrossEntropyLoss(), "network"),
        (lambda: nn.Linear(4, 3), lambda o, t: F.cross_entropy(o.view(16, 3), t), "loss"),
    ],
)
def test_a_hard_coded_batch_size_is_named_as_the_reason(make_model, loader, network, loss_fn, what):
    with pytest.raises(DataError, match=f"works with 16 examples, .* the {what} has a batch size written into it"):
        make_model(network(), loss_fn=loss_fn).fit(loader)


class Reentrant(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return checkpoint(self.last, self.first(x), use_reentrant=True)


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_reentrant_checkpoints_are_refused_with_the_remedy(make_model, loader, engine):
    with pytest.raises(UnsupportedModuleError, match="use use_reentrant=False"):
        make_model(Reentrant(), engine=engine).fit(loader)


class Slope(nn.Module):
    """Gives a function of its inputs and the function's derivative, which needs a graph."""

    def __init__(self):
        super().__init__()
        self.function = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x):
        x = x.detach().requires_grad_(True)
        value = self.function(x)
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return torch.cat([value, slope[:, :2]], 1)


def test_a_network_that_differentiates_in_its_forward_pass_trains_evaluates_and_predicts(make_model, loader, make_data):
    from dpmodel import validate

    assert validate(Slope(), torch.randn(4, 4)) == []
    model = make_model(Slope())
    history = model.fit(loader, valid_loader=make_data())
    assert history[-1].metrics["valid_loss"] > 0
    assert not model.predict(torch.randn(5, 4)).requires_grad
    inputs, targets = make_data(n=6).tensors
    engine, bound = model._choice[0].engine, model.clip_mech
    found = engine.clipped_sum(model.network, model.loss_fn, Batch(inputs, targets), bound).flat_grad
    expected = torch.zeros_like(found)
    for row in range(6):
        model.network.zero_grad()
        F.cross_entropy(model.network(inputs[row : row + 1]), targets[row : row + 1]).backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.network.parameters()])
        expected += gradient * min(1.0, float(1.0 / gradient.norm()))
    assert torch.allclose(found, expected, atol=1e-5)
    model.network.zero_grad(set_to_none=True)
