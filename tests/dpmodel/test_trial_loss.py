import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset

from dpmodel.trial_loss import remedy
from monitors.errors import DataError, UnsupportedModuleError


class Detached(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Chosen(nn.Linear):
    def forward(self, x):
        return F.one_hot(super().forward(x).argmax(1), 3).float()


class Elsewhere(nn.Module):
    """Makes its output of nothing that is trained."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(4, 3)

    def forward(self, x):
        return (x[:, :3] * 2).requires_grad_()


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
def test_a_loss_that_cannot_train_is_refused_with_what_it_was_given(make_model, loader, loss_fn, error, message):
    model = make_model(loss_fn=loss_fn)
    with pytest.raises(error, match=message):
        model.fit(loader)
    assert model.ledger.total == 0


def test_targets_in_a_column_are_told_to_be_squeezed(make_model):
    data = TensorDataset(torch.randn(32, 4), torch.randint(0, 3, (32, 1)))
    with pytest.raises(DataError, match=r"targets\.squeeze\(1\)"):
        make_model().fit(DataLoader(data, batch_size=8))


def test_examples_without_a_finite_gradient_are_told_of_once_and_counted(make_model, make_data, capsys):
    data = make_data(n=64)
    data.tensors[0][::4] = torch.nan
    make_model().fit(DataLoader(data, batch_size=16), epochs=3)
    shown = capsys.readouterr().out
    assert shown.count("look for NaN or infinite numbers in the data") == 1
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
def test_whole_numbers_as_targets_of_a_binary_loss_are_told_to_be_floats(make_model, loss_fn):
    data = TensorDataset(torch.randn(32, 4), torch.randint(0, 2, (32, 1)))
    model = make_model(nn.Linear(4, 1), loss_fn=loss_fn)
    with pytest.raises(DataError, match=r"give it targets\.float\(\)") as caught:
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
def test_the_remedy_is_the_first_change_of_the_targets_that_serves(outputs, targets, loss_fn, words):
    assert remedy(loss_fn, outputs, targets).endswith(f"give it {words}")


def test_there_is_no_remedy_where_the_targets_are_not_at_fault():
    assert remedy(lambda outputs, targets: outputs.missing, torch.zeros(1, 1), torch.zeros(1)) == ""
    assert remedy(nn.MSELoss(), torch.zeros(1, 1), torch.zeros(1, 1)) == ""
    assert remedy(nn.MSELoss(), torch.zeros(1, 1), {"y": torch.zeros(1, 1)}) == ""
