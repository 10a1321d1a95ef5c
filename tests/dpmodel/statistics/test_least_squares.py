"""The linear model in closed form: ridge regression on what was released, and what the release costs."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory, poisson_loader
from dpmodel.statistics import private_least_squares
from mechanisms.answers import TRUE_SIZE
from monitors import GaussianEvent, Ledger
from monitors.errors import DataError

N, D, CLASSES = 400, 5, 3
GENERATOR = torch.Generator().manual_seed(4)
X = torch.randn(N, D, generator=GENERATOR)
Y = (X @ torch.randn(D, CLASSES, generator=GENERATOR) + torch.tensor([0.0, 0.5, -0.5])).argmax(1)
FREE = {"noise_multiplier": 1e-9, "norm_bound": 100.0, "num_classes": CLASSES}


def fitted(x=X, y=Y, ledger=None, **options):
    return private_least_squares(x, y, ledger=Ledger() if ledger is None else ledger, **{**FREE, **options})


def ridge_regression(x, targets, ridge, norm_bound):
    """By torch's own solver, with the penalised constant column."""
    constant = norm_bound / x.shape[1] ** 0.5
    columns = torch.cat((x.double(), torch.full((len(x), 1), constant, dtype=torch.float64)), dim=1)
    second = columns.T @ columns + ridge * torch.eye(columns.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(second, columns.T @ targets.double())
    return solved[:-1].T, solved[-1] * constant


@pytest.mark.parametrize("ridge", [1.0, 100.0])
def test_without_clipping_and_noise_it_is_ridge_regression(ridge):
    found = fitted(ridge=ridge)
    targets = nn.functional.one_hot(Y, CLASSES).double() - 1 / CLASSES
    weight, bias = ridge_regression(X, targets, ridge, 100.0)
    torch.testing.assert_close(found.weight, weight, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.bias, bias, atol=1e-4, rtol=1e-3)
    assert found.ridge == ridge


def test_regression_of_numbers_finds_the_coefficients():
    slopes = torch.tensor([[1.0, -2.0, 0.0, 0.5, 3.0]])
    for targets in (X @ slopes.T + 2.0, (X @ slopes.T + 2.0).squeeze(1)):
        found = fitted(y=targets, num_classes=None, target_bound=50.0, norm_bound=20.0, ridge=1e-3)
        torch.testing.assert_close(found.weight, slopes.double(), atol=1e-2, rtol=0)
        torch.testing.assert_close(found.bias, torch.tensor([2.0]).double(), atol=1e-2, rtol=0)


def test_the_layer_computes_what_was_fitted():
    found = fitted(ridge=1.0)
    torch.testing.assert_close(found.layer()(X), X @ found.weight.float().T + found.bias.float())
    assert float((found.layer()(X).argmax(1) == Y).float().mean()) > 0.8


def test_features_of_any_shape_are_flattened():
    assert torch.equal(fitted(X.view(N, 1, D), seed=2).weight, fitted(seed=2).weight)


def test_chunks_and_kinds_of_data_sets_change_no_bit(monkeypatch):
    whole = fitted(seed=2, norm_bound=2.0).weight
    assert torch.equal(fitted(TensorDataset(X, Y), None, seed=2, norm_bound=2.0).weight, whole)
    monkeypatch.setattr("dpmodel.statistics.least_squares._EXAMPLES", 7)
    assert torch.equal(fitted(seed=2, norm_bound=2.0).weight, whole)


def test_it_is_one_gaussian_release_whatever_the_sizes():
    for features, targets, options in (
        (X, Y, {}),
        (X[:50, :2], X[:50, 2:], {"num_classes": None, "target_bound": 2.0}),
    ):
        ledger = Ledger()
        fitted(features, targets, ledger=ledger, noise_multiplier=3.0, **options)
        assert ledger.rows == ((GaussianEvent(3.0), 1),)
        assert ledger.notes == (TRUE_SIZE,)


def test_the_release_is_recorded_before_noise_is_drawn(monkeypatch):
    ledger = Ledger()

    def fails(self, count, scale):
        assert (count, ledger.total) == ((D + 1) * (D + 2) // 2 + (D + 1) * CLASSES, 1)
        raise MemoryError

    monkeypatch.setattr("mechanisms.rng.SecureGenerator.normal", fails)
    with pytest.raises(MemoryError):
        fitted(ledger=ledger, noise_multiplier=8.0)
    assert ledger.rows == ((GaussianEvent(8.0), 1),)


def test_a_large_example_moves_the_result_no_more_than_one_at_the_bound():
    far, at_bound = X.clone(), X.clone()
    far[0], at_bound[0] = 1e6 * X[0], 3.0 * X[0] / X[0].norm()
    results = [fitted(x, ridge=1.0, norm_bound=3.0, seed=2).weight for x in (far, at_bound)]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_an_example_that_is_not_finite_contributes_zero():
    broken, zeroed = X.clone(), X.clone()
    broken[3, 1], broken[5, 0] = float("nan"), float("inf")
    others = torch.tensor([row for row in range(N) if row not in (3, 5)])
    found, expected = fitted(broken, ridge=1.0), fitted(zeroed[others], Y[others], ridge=1.0)
    torch.testing.assert_close(found.weight, expected.weight, atol=1e-4, rtol=1e-3)
    assert found.num_examples == N


def test_the_noise_of_few_examples_does_not_make_the_weights_explode():
    for seed in range(1, 6):
        found = fitted(X[:20], Y[:20], noise_multiplier=20.0, norm_bound=3.0, seed=seed)
        # X'Y has noise of 20 * sqrt(2) * 3.3 in each entry at most, and the ridge is the norm of the noise of X'X
        assert found.ridge == pytest.approx(2 * found.moment_noise * (D + 1) ** 0.5)
        assert float(found.weight.abs().max()) < 5 * 20 * 1.5 * 3.3 / found.ridge


def test_more_examples_beat_the_noise():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20_000, 4, generator=generator)
    y = (x[:, 0] + x[:, 1] > 0.3).long()
    found = fitted(x, y, num_classes=2, noise_multiplier=5.0, norm_bound=3.0)
    assert float((found.layer()(x).argmax(1) == y).float().mean()) > 0.95


def test_a_model_that_holds_the_layer_continues_its_ledger():
    ledger = Ledger()
    layer = fitted(ledger=ledger, noise_multiplier=4.0).layer()
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=2.0)
    model = DPModel(layer, nn.CrossEntropyLoss(), torch.optim.SGD(layer.parameters(), lr=0.1), noise_mech=noise)
    assert model.ledger is ledger
    model.fit(poisson_loader(TensorDataset(X, Y), batch_size=100), epochs=1)
    assert ledger.total == 5
    assert next(iter(ledger))[0] == GaussianEvent(4.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier must be a positive"),
        ({"norm_bound": -1.0}, "norm_bound must be a positive"),
        ({"ridge": 0.0}, "ridge must be a positive"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"num_classes": None}, "give num_classes for classes, or target_bound for numbers"),
        ({"target_bound": 1.0}, "give num_classes for classes, or target_bound for numbers"),
        ({"num_classes": 2}, "classes must be numbers from 0 to 1"),
        ({"y": Y.float()}, "the targets must be integers with num_classes"),
        ({"num_classes": None, "target_bound": 1.0}, "floats with target_bound, got torch.int64"),
        ({"y": Y[:5]}, "one row per example"),
        ({"y": None}, "one row per example"),
        ({"num_classes": None, "target_bound": 0.0}, "target_bound must be a positive"),
        ({"x": X.numpy()}, "got ndarray; convert arrays with torch.from_numpy"),
        ({"x": X.repeat(2, 1), "y": Y.repeat(2)}, "holds its rows more than once"),
        ({"x": X.long()}, "the features must be floats"),
        ({"x": [[1.0]]}, "a tensor, or a map-style data set of pairs"),
        ({"x": TensorDataset(X, Y)}, "a map-style data set of pairs without y"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_recorded(options, message):
    ledger = Ledger()
    with pytest.raises((ValueError, DataError), match=message):
        fitted(ledger=ledger, **options)
    assert ledger.total == 0
