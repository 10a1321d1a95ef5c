import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from dpmodel import poisson_loader
from dpmodel.data.inference import evaluation_batches, prediction_batches, predictions
from monitors.errors import DataError

X, Y = torch.randn(11, 4), torch.arange(11)


class Two(nn.Module):
    def forward(self, x, scale):
        return x * scale[:, None]


class Optional(nn.Module):
    def forward(self, x, scale=None):
        return x if scale is None else x * scale[:, None]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Inputs(Dataset):
    def __len__(self):
        return 11

    def __getitem__(self, row):
        return X[row]


def joined(batches):
    return torch.cat(list(batches))


@pytest.mark.parametrize("given", [(X.numpy(), Y.numpy()), [X, Y], (X.double().numpy(), Y.numpy().astype("int32"))])
def test_arrays_are_evaluated_as_tensors_of_the_default_type(given):
    pairs = list(evaluation_batches(given, 4))
    x, y = joined(x for x, _ in pairs), joined(y for _, y in pairs)
    torch.testing.assert_close(x, X)
    assert y.tolist() == Y.tolist()


def test_inputs_of_a_pair_may_be_nested():
    pairs = list(evaluation_batches(({"a": X.numpy(), "b": Y}, Y), 4))
    assert [len(x["a"]) for x, _ in pairs] == [4, 4, 3]


def test_several_inputs_outside_of_a_pair_are_refused_with_the_remedy():
    with pytest.raises(DataError, match=r"got 3 tensors; put the inputs .* \(\(first, second\), targets\)"):
        evaluation_batches((X, X, Y))
    (x, _), _ = next(iter(evaluation_batches(((X, X), Y), 4)))
    assert len(x) == 4


def test_a_stream_of_examples_is_evaluated_in_batches():
    assert [len(y) for _, y in evaluation_batches(Stream(), 4)] == [4, 4, 3]


def test_batches_of_arrays_are_taken_from_loaders_and_iterables():
    def collate(examples):
        return np.stack([x.numpy() for x, _ in examples]), np.array([int(y) for _, y in examples])

    for given in (DataLoader(TensorDataset(X, Y), 4, collate_fn=collate), [(X.numpy(), Y.numpy()) for _ in range(3)]):
        assert all(isinstance(x, torch.Tensor) for x, _ in (evaluation_batches(iter(given))))


@pytest.mark.parametrize(
    "given",
    [
        X,
        X.numpy(),
        X.numpy()[::-1][::-1],
        (X, Y),
        [X.numpy(), Y.numpy()],
        TensorDataset(X, Y),
        TensorDataset(X),
        Inputs(),
        Stream(),
        DataLoader(TensorDataset(X, Y), 4),
        DataLoader(TensorDataset(X, Y), 4, shuffle=True),
        DataLoader(Inputs(), 4),
        poisson_loader(TensorDataset(X, Y), 4),
        iter([(X[:6], Y[:6]), (X[6:], Y[6:])]),
    ],
)
def test_predict_takes_whatever_evaluate_takes_in_order_and_without_targets(given):
    torch.testing.assert_close(predictions(nn.Identity(), given, torch.device("cpu"), 4), X)


@pytest.mark.parametrize("network", [Two(), Optional()])
def test_a_tuple_is_spread_over_a_network_that_takes_as_many_inputs(network):
    found = predictions(network, (X, Y.float()), torch.device("cpu"), 4)
    torch.testing.assert_close(found, X * Y[:, None])


def test_the_last_item_of_a_data_set_is_an_input_only_if_the_network_needs_it():
    data = TensorDataset(X, Y.float())
    torch.testing.assert_close(predictions(Two(), data, torch.device("cpu"), 4), X * Y[:, None])
    torch.testing.assert_close(predictions(Optional(), data, torch.device("cpu"), 4), X)


def test_a_network_that_writes_to_its_input_does_not_change_the_callers_data():
    before = X.clone()
    predictions(nn.ReLU(inplace=True), X, torch.device("cpu"), 4)
    next(iter(evaluation_batches((X, Y), 4)))[0].zero_()
    assert torch.equal(X, before)


@pytest.mark.parametrize("given", [(X, Y[:5]), {"a": X, "b": Y[:5]}])
def test_inputs_of_different_lengths_are_refused(given):
    with pytest.raises(DataError, match=r"of all tensors must be the number of examples, got \[5, 11\]"):
        list(prediction_batches(given, Two(), 4))


def test_an_empty_loader_is_refused():
    with pytest.raises(DataError, match="no batch"):
        predictions(nn.Identity(), DataLoader(TensorDataset(X[:0], Y[:0]), 4), torch.device("cpu"), 4)


@pytest.mark.parametrize("make", [lambda x: (x, object()), lambda x: {"loss": x.mean(), "x": x}, lambda x: x.mean()])
def test_outputs_for_a_whole_batch_are_returned_for_one_batch_and_refused_for_several(make):
    class Made(nn.Module):
        def forward(self, x):
            return make(x)

    predictions(Made(), X, torch.device("cpu"), 11)
    with pytest.raises(DataError, match="belongs to a whole batch"):
        predictions(Made(), X, torch.device("cpu"), 4)


def test_states_of_a_recurrent_network_are_joined_along_the_dimension_of_examples():
    network, x = nn.LSTM(2, 3, batch_first=True), torch.randn(7, 5, 2)
    parts, (hidden, _) = predictions(network, x, torch.device("cpu"), 3)
    torch.testing.assert_close(parts, network(x)[0].detach())
    torch.testing.assert_close(hidden, network(x)[1][0].detach())


@pytest.mark.parametrize("given", [torch.zeros(5, 4), torch.zeros(5, 4).numpy(), {"x": torch.zeros(5, 4)}])
def test_inputs_without_targets_cannot_be_evaluated(given):
    with pytest.raises(DataError, match=r"evaluate needs targets too: evaluate\(\(inputs, targets\)\)"):
        evaluation_batches(given)
