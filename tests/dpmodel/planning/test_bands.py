"""The number of bands: at equal epsilon, for the optimizer and schedule in use."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory, noise_for_epsilon
from dpmodel.callbacks import LearningRateScheduler
from dpmodel.config import make_config
from dpmodel.planning.bands import BandsRow, best_bands, configured_bands
from dpmodel.planning.longest import longest_training
from dpmodel.planning.training_plan import plan_training
from dpmodel.planning.workload import configured_workload, planned_rates, training_workload
from mechanisms.correlated.toeplitz import factorisation_error, optimal_coefficients
from mechanisms.correlated.workload import Workload
from monitors import privacy_spent
from monitors.errors import ConfigError

SETTINGS = {
    "data": {"name": "synthetic", "num_examples": 1200, "shape": [4], "num_train": 1200, "num_classes": 3},
    "network": "linear",
    "optimizer": {
        "name": "Momentum",
        "lr": 0.5,
        "schedule": {"name": "LinearLR", "start_factor": 1.0, "end_factor": 0.0},
    },
    "privacy": {
        "target_epsilon": 3.0,
        "sampling": "cyclic_poisson",
        "noise": {"name": "BandedMF", "bands": "auto"},
    },
    "training": {"epochs": 4, "batch_size": 20},
}


def config(**changes):
    values = {name: dict(section) if isinstance(section, dict) else section for name, section in SETTINGS.items()}
    for place, value in changes.items():
        section, _, key = place.partition("__")
        values[section][key] = value
    return make_config(values)


def test_auto_takes_the_fewest_bands_whose_noise_is_within_five_percent_of_the_least():
    rows = [BandsRow(1, 1.0, 1.0), BandsRow(2, 1.2, 0.8), BandsRow(4, 1.5, 0.705), BandsRow(8, 2.0, 0.7)]
    assert best_bands(rows).bands == 4
    assert best_bands(rows[:1]).bands == 1


def test_each_number_of_bands_meets_the_same_target_and_the_best_is_planned():
    plan = plan_training(config())
    rows = configured_bands(plan)
    assert [row.bands for row in rows] == [1, 2, 4, 8, 16, 32]
    assert plan.release.noise.bands == best_bands(rows).bands > 1
    for row in rows:
        one = plan_training(config(privacy__noise={"name": "BandedMF", "bands": row.bands}))
        assert one.noise_multiplier == pytest.approx(row.noise_multiplier, rel=1e-3)
        assert 2.99 < one.privacy_spent().epsilon <= 3.0
        error = one.release.noise.error(configured_workload(one.config, one.steps_per_epoch))
        assert row.noise == pytest.approx(one.noise_multiplier * error / rows[0].noise_multiplier, rel=1e-3)
    assert rows[0].noise == 1.0


def test_a_stated_number_of_bands_is_among_those_compared():
    plan = plan_training(config(privacy__noise={"name": "BandedMF", "bands": 5}))
    rows = {row.bands: row for row in configured_bands(plan)}
    assert list(rows) == [1, 2, 4, 5, 8, 16, 32]
    assert rows[4].noise_multiplier < rows[5].noise_multiplier < rows[8].noise_multiplier
    assert rows[5].noise_multiplier == pytest.approx(plan.noise_multiplier, rel=1e-3)


def test_one_band_is_taken_if_little_is_gained_or_no_other_number_fits():
    large = config(training__epochs=40, training__batch_size=4096, data__num_examples=60_000)
    plan = plan_training(large)
    least = min(configured_bands(plan), key=lambda row: row.noise)
    assert least.bands > 1
    assert 0.95 < least.noise < 1
    assert plan.release.noise.bands == 1
    assert plan_training(config(training__epochs=2, training__batch_size=1200)).release.noise.bands == 1


def test_for_a_stated_multiplier_bands_are_compared_at_the_epsilon_of_one():
    stated = config(privacy__target_epsilon=None, privacy__noise_multiplier=1.5)
    plan = plan_training(stated)
    rows = configured_bands(plan)
    assert rows[0].noise_multiplier == pytest.approx(1.5, rel=1e-2)
    assert plan.noise_multiplier == 1.5
    assert plan.release.noise.bands == best_bands(rows).bands


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy__sampling": "poisson"}, "cyclic_poisson"),
        ({"privacy__sampling": "shuffle"}, "cyclic_poisson"),
        ({"privacy__clip": {"name": "Gaussian"}}, "adaptive clipping"),
        ({"privacy__micro_batches": 5}, "micro-batches"),
        ({"privacy__noise": {"name": "BandedMF", "bands": 61}}, "at most bands=60"),
        ({"privacy__noise": {"name": "BandedMF", "bands": 0}}, "bands"),
        ({"privacy__noise": {"name": "BandedMF", "bands": "some"}}, "bands"),
        ({"privacy__noise": {"name": "BandedMF", "noise_decay_rate": 0.1}}, "no meaning"),
    ],
)
def test_what_does_not_go_together_is_refused_while_planning(changes, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        plan_training(config(**changes))


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("by_name", [True, False])
def test_planned_rates_are_those_of_the_training(interval, by_name):
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=0.4, momentum=0.5)
    if by_name:
        scheduled = LearningRateScheduler("ExponentialLR", interval, gamma=0.5)
    else:
        scheduled = LearningRateScheduler(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), interval)
    expected = [0.4, 0.2, 0.1, 0.05, 0.025, 0.0125] if interval == "step" else [0.4] * 3 + [0.2] * 3
    assert planned_rates(optimizer, [object(), scheduled], 2, 3) == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == 0.4
    found = training_workload(optimizer, [scheduled], 2, 3)
    signal = Workload.of_last_iterate(expected, momentum=0.5).signal
    assert found.signal == pytest.approx(signal / signal.max())


def test_other_optimizers_are_planned_by_the_sums_of_the_gradients():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))])
    assert training_workload(optimizer, [], 2, 3).importance == pytest.approx(Workload.of_prefix_sums(6).importance)


@pytest.mark.slow
def test_python_chooses_and_meets_the_target():
    data = TensorDataset(torch.randn(1200, 4), torch.randint(0, 3, (1200,)))
    network = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    common = {"sampling": "cyclic_poisson", "noise": "BandedMF"}
    noise = noise_for_epsilon(3.0, 1e-5, DataLoader(data, 20), 4, bands="auto", optimizer=optimizer, **common)
    assert noise.bands > 1
    assert noise.bands == 2 ** (noise.bands.bit_length() - 1)
    same = noise_for_epsilon(3.0, 1e-5, DataLoader(data, 20), 4, bands=noise.bands, **common)
    assert same.noise_multiplier(0) == pytest.approx(noise.noise_multiplier(0), rel=1e-3)
    model = DPModel(network, torch.nn.CrossEntropyLoss(), optimizer, noise_mech=noise, sampling="cyclic_poisson")
    model.fit(DataLoader(data, 20), epochs=4)
    assert 2.99 < privacy_spent(model.ledger, 1e-5).epsilon <= 3.0


@pytest.mark.slow
def test_fit_chooses_bands_for_a_stated_multiplier():
    data = TensorDataset(torch.randn(1200, 4), torch.randint(0, 3, (1200,)))
    network = torch.nn.Linear(4, 3)
    noise = NoiseMechanismsFactory.create("BandedMF", initial_noise_multiplier=1.5, bands="auto")
    model = DPModel(
        network,
        torch.nn.CrossEntropyLoss(),
        torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        noise_mech=noise,
        sampling="cyclic_poisson",
    )
    model.fit(DataLoader(data, 20), epochs=2)
    assert {event.bands for event, _ in model.ledger} <= {2, 4, 8, 16, 32}
    assert noise.bands == "auto"


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"lr": 1e-300}, {"lr": 1.0, "weight_decay": 1e30}, {"lr": 1e308}])
def test_extreme_rates_leave_usable_coefficients(settings):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], momentum=0.5, **settings)
    found = training_workload(optimizer, [], 2, 30)
    coefficients = optimal_coefficients(4, found)
    assert np.linalg.norm(coefficients) == pytest.approx(1.0)
    assert 0 < factorisation_error(coefficients, found) <= 1
    if settings == {"lr": 1e-300}:  # the size of the rates does not matter
        usual = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], momentum=0.5, lr=0.1)
        assert coefficients == pytest.approx(optimal_coefficients(4, training_workload(usual, [], 2, 30)))


def test_a_schedule_that_ends_too_soon_keeps_its_last_rate():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    short = LearningRateScheduler(torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=4), interval="step")
    rates = planned_rates(optimizer, [short], 2, 5)
    assert len(rates) == 10
    assert rates[-1] == rates[5] < rates[1]


def test_the_longest_training_needs_a_number_of_bands():
    stated = {"noise_multiplier": 1.5, "sampling": "cyclic_poisson"}
    config, fixed = (
        make_config(SETTINGS | {"privacy": stated | {"noise": {"name": "BandedMF", "bands": bands}}})
        for bands in ("auto", 4)
    )
    with pytest.raises(ConfigError, match="give bands a number"):
        longest_training(config, 3.0)
    longest = longest_training(fixed, 3.0)
    trained = plan_training(longest.config)
    assert trained.release.noise.bands == 4
    assert 2.5 < trained.privacy_spent().epsilon == longest.privacy_spent().epsilon <= 3.0
