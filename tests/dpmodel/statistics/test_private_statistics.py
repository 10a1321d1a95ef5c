"""Statistics as a layer, in a file, and in the epsilon of a training."""

import copy
import gc
import json

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import (
    DPModel,
    GaussianEvent,
    Ledger,
    NoiseMechanismsFactory,
    StateKeeper,
    noise_for_epsilon,
    poisson_loader,
)
from dpmodel.statistics import PrivateStatistics, Standardise, private_mean_and_variance
from mechanisms.engines.base import ENGINES
from monitors.errors import CheckpointError, DataError, UnprotectedUpdateError

from ..power_cut import PowerCut

X, Y = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 2
DATA = TensorDataset(X, Y)


def released(ledger, multiplier=8.0):
    return private_mean_and_variance(X, noise_multiplier=multiplier, norm_bound=1.0, square_bound=0.7, ledger=ledger)


def model_on(layer, noise=None, **options):
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(48, 2))
    if noise is None:
        noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=2.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, **options)


def fitted(layer, **options):
    model = model_on(layer, **options)
    model.fit(poisson_loader(DATA, batch_size=10))
    return model


@pytest.mark.sample(3)
@pytest.mark.parametrize("engine", ENGINES.names())
def test_every_engine_trains_behind_the_layer_and_leaves_it_as_it_was(engine):
    layer = released(Ledger()).normalise()
    before = copy.deepcopy(layer.state_dict())
    model = fitted(layer, engine=engine)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert model.ledger.total == 2 + 4


@pytest.mark.sample(4)
@pytest.mark.parametrize("change", [lambda layer: layer, copy.deepcopy, nn.Module.double, lambda layer: layer.float()])
def test_without_ledger_the_training_is_charged_with_the_statistics(change):
    layer = change(released(Ledger()).normalise())
    gc.collect()  # nobody else keeps the ledger
    assert (GaussianEvent(8.0), 2) in model_on(layer).ledger.rows


def test_with_a_different_ledger_the_training_says_that_it_lacks_them():
    model = fitted(released(Ledger()).normalise(), ledger=Ledger())
    assert any("does not contain" in note for note in model.ledger.notes)


def test_data_normalised_outside_the_network_leave_a_note(capsys):
    released(Ledger())
    gc.collect()  # nothing else refers to the ledger
    model = fitted(nn.Identity())
    assert "private queries were answered on a different ledger" in capsys.readouterr().out
    assert any("different ledger" in note for note in model.ledger.notes)


def test_the_planned_ledger_is_the_recorded_one(capsys):
    ledger, loader = Ledger(), poisson_loader(DATA, batch_size=10)
    layer = released(ledger).normalise()
    noise = noise_for_epsilon(5.0, 1e-3, loader, epochs=3, accountant="pld", spent=ledger)
    model = model_on(layer, noise, ledger=ledger)
    model.fit(loader, epochs=3)
    assert model.privacy_spent(1e-3, "pld").epsilon == pytest.approx(5.0, rel=2e-3)
    assert model.privacy_spent(1e-3, "pld").epsilon <= 5.0
    assert "did not count" not in capsys.readouterr().out


@pytest.mark.parametrize("other", [Ledger(), Ledger().record(GaussianEvent(8.0))], ids=["empty", "a part"])
def test_noise_solved_beside_statistics_is_refused_without_them(other):
    ledger, loader = Ledger(), poisson_loader(DATA, batch_size=10)
    released(ledger)
    noise = noise_for_epsilon(5.0, 1e-3, loader, epochs=1, spent=ledger)
    model = model_on(nn.Identity(), noise, ledger=other.copy())
    with pytest.raises(UnprotectedUpdateError, match=r"lacks [12] of them.*DPModel\(\.\.\., ledger=ledger\)"):
        model.fit(loader)
    assert model.ledger == other


def test_releases_that_were_not_counted_are_announced_once(capsys):
    ledger, loader = Ledger(), poisson_loader(DATA, batch_size=10)
    noise = noise_for_epsilon(5.0, 1e-3, loader, epochs=1)
    model_on(released(ledger).normalise(), noise).fit(loader)
    assert capsys.readouterr().out.count("2 releases that noise_for_epsilon did not count") == 1


def test_a_ledger_that_grew_after_the_calibration_is_announced(capsys):
    ledger, loader = Ledger(), poisson_loader(DATA, batch_size=10)
    noise = noise_for_epsilon(5.0, 1e-3, loader, epochs=1, spent=ledger)
    layer = released(ledger).normalise()
    model_on(layer, noise, ledger=ledger).fit(loader)
    assert "2 releases that noise_for_epsilon did not count" in capsys.readouterr().out


def test_a_file_gives_back_the_statistics_and_their_cost(tmp_path):
    statistics, path = released(Ledger()), tmp_path / "statistics.safetensors"
    statistics.save(path)
    again = PrivateStatistics.load(path)
    assert torch.equal(again.mean, statistics.mean)
    assert torch.equal(again.variance, statistics.variance)
    assert again.ledger.rows == ((GaussianEvent(8.0), 2),)
    assert torch.equal(again.normalise()(X), statistics.normalise()(X))
    assert model_on(again.normalise()).ledger.total == 2
    assert PrivateStatistics.load(path, statistics.ledger).ledger is statistics.ledger
    with pytest.raises(ValueError, match="lacks the 2 releases"):
        PrivateStatistics.load(path, Ledger())


def test_the_ledger_of_equal_releases_is_refused(tmp_path):
    one, other, path = Ledger(), Ledger(), tmp_path / "statistics.safetensors"
    released(other)
    released(one).save(path)
    for ledger in (one, other):
        ledger.save(tmp_path / "ledger.json")
    with pytest.raises(ValueError, match="lacks the 2 releases"):
        PrivateStatistics.load(path, Ledger.load(tmp_path / "ledger.json"))
    one.merge(other).save(tmp_path / "ledger.json")
    assert PrivateStatistics.load(path, Ledger.load(tmp_path / "ledger.json")).ledger.total == 4


def test_files_of_a_version_without_identities_are_compared_by_their_events(tmp_path):
    from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file

    ledger, path = Ledger(), tmp_path / "statistics.safetensors"
    released(ledger).save(path)
    tensors, values = read_tensor_file(path)
    assert values.pop("origins") is not None
    write_tensor_file(path, tensors, values)
    old = {name: value for name, value in json.loads(ledger.to_json()).items() if name != "origins"}
    for _ in range(2):
        found = PrivateStatistics.load(path, Ledger.from_json(json.dumps(old)))
    assert found.ledger == ledger
    found.save(path)
    assert PrivateStatistics.load(path).ledger.total == 2
    with pytest.raises(ValueError, match="lacks the 2 releases"):
        PrivateStatistics.load(path, Ledger.from_json(json.dumps({**old, **json.loads(Ledger().to_json())})))


def test_a_resumed_training_counts_the_statistics_once(tmp_path):
    ledger, loader = Ledger(), poisson_loader(DATA, batch_size=10)
    released(ledger).save(tmp_path / "statistics.safetensors")
    ledger.save(tmp_path / "ledger.json")

    def build(layer, spent, **options):
        return model_on(layer, noise_for_epsilon(5.0, 1e-3, loader, epochs=3, spent=spent), **options)

    layer = PrivateStatistics.load(tmp_path / "statistics.safetensors", ledger).normalise()
    with pytest.raises(KeyboardInterrupt):
        build(layer, ledger).fit(loader, epochs=3, callbacks=[PowerCut(6)], keeper=StateKeeper(tmp_path / "run", 4))
    again = Ledger.load(tmp_path / "ledger.json")
    layer = PrivateStatistics.load(tmp_path / "statistics.safetensors", again).normalise(resumed=True)
    model = build(layer, again)
    model.fit(loader, epochs=3, keeper=StateKeeper(tmp_path / "run", 4, resume=True))
    assert model.ledger.rows[0] == (GaussianEvent(8.0), 2)
    assert model.ledger.kept.total == 2 + 12
    assert not any("different ledger" in note for note in model.ledger.notes)


def test_a_layer_for_a_resumed_training_leaves_a_note_in_a_new_one(tmp_path):
    released(Ledger()).save(tmp_path / "statistics.safetensors")
    statistics = PrivateStatistics.load(tmp_path / "statistics.safetensors")
    model = fitted(statistics.normalise(resumed=True))
    assert statistics.ledger.total == 2
    assert any("different ledger" in note for note in model.ledger.notes)


@pytest.mark.parametrize("fault", ["missing", "cut", "other"])
def test_a_file_that_is_not_statistics_is_refused_by_name(tmp_path, fault):
    from dpmodel.saving.tensor_file import write_tensor_file

    path = tmp_path / "statistics.safetensors"
    released(Ledger()).save(path)
    if fault == "missing":
        path.unlink()
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        write_tensor_file(path, {"mean": torch.zeros(2)}, {"kind": "weights"})
    with pytest.raises(CheckpointError, match=r"statistics\.safetensors"):
        PrivateStatistics.load(path)


@pytest.mark.parametrize(
    ("mean", "variance"), [([0.0], [0.0]), ([0.0], [1.0, 1.0]), ([float("nan")], [1.0]), ([0.0], [-1.0])]
)
def test_a_layer_needs_positive_variances(mean, variance):
    with pytest.raises(DataError, match="each variance positive"):
        Standardise(torch.tensor(mean), torch.tensor(variance))
