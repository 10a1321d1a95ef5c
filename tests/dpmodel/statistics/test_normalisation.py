"""Private normalisation in a configured training."""

import pytest
import torch

from dpmodel.callbacks import Silence
from dpmodel.config import make_config
from dpmodel.planning.training_plan import plan_training
from dpmodel.runs.build import build_task, build_training
from dpmodel.runs.evaluate import evaluate_run
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.train import train_from_config
from dpmodel.saving.tensor_file import read_tensor_file
from monitors import GaussianEvent, Ledger
from monitors.errors import ConfigError

from ..journey import SETTINGS
from ..power_cut import PowerCut

NORMALISE = {"name": "private", "noise_multiplier": 2.0, "norm_bound": 2.0, "square_bound": 4.0}

WHITENED = {
    "features": {"name": "scattering", "J": 1, "L": 2},
    "network": {"name": "scattering_linear", "num_groups": 0},
    "normalise": {**NORMALISE, "whitening": 0.5},
}


def config(**changes):
    return make_config({**SETTINGS, "normalise": NORMALISE, **changes})


def layer_of(folder):
    tensors, _ = read_tensor_file(RunFolder(folder).checkpoint)
    return {name.split(".")[-1]: value for name, value in tensors.items() if "normalise" in name}


def test_the_plan_is_what_the_training_records_and_the_target_covers_it(tmp_path):
    result = train_from_config(config(), tmp_path / "run", callbacks=[Silence()])
    ledger = Ledger.load(result.folder.ledger)
    assert ledger.rows == plan_training(config(), 60).ledger().rows
    assert ledger.rows[0] == (GaussianEvent(2.0), 2)
    assert 7.9 < result.report.spent.epsilon <= 8.0
    layer = layer_of(tmp_path / "run")
    assert layer["mean"].shape == layer["scale"].shape == (1, 1, 1)
    assert layer["mean"].abs().sum() > 0
    assert evaluate_run(result.folder.path).metrics == pytest.approx(result.metrics)


def test_the_statistics_are_those_of_the_training_data(tmp_path):
    asked = config(normalise={**NORMALISE, "noise_multiplier": 0.02}, privacy={"noise_multiplier": 1.0})
    train_from_config(asked, tmp_path / "run", callbacks=[Silence()])
    inputs = build_task(asked).data.train
    x = inputs.transform_batch(inputs.x).double()
    layer = layer_of(tmp_path / "run")
    # Five standard deviations of the noise: 0.02 * 2 / 60 in the mean, 0.02 * 4 / 60 in the second moment.
    assert layer["mean"].item() == pytest.approx(x.mean().item(), abs=0.0034)
    assert layer["scale"].item() ** -2 == pytest.approx(x.var(unbiased=False).item(), abs=0.0067 + 2 * 0.0034)


@pytest.mark.sample(2)
@pytest.mark.parametrize(("changes", "releases"), [({}, 2), (WHITENED, 3)], ids=["standardised", "whitened"])
@pytest.mark.parametrize("step", [1, 17])
def test_a_resumed_training_keeps_the_statistics_and_releases_none(tmp_path, step, changes, releases):
    folder, asked = RunFolder(tmp_path / "run"), config(**changes)
    with pytest.raises(KeyboardInterrupt):
        train_from_config(asked, folder.path, callbacks=[Silence(), PowerCut(step)])
    state = read_tensor_file(folder.state)[0]
    train_from_config(asked, folder.path, resume=True, callbacks=[Silence()])
    ledger = Ledger.load(folder.ledger)
    assert ledger.kept.rows == plan_training(asked, 60).ledger().rows
    assert ledger.rows[0] == (GaussianEvent(2.0), releases)
    layer = layer_of(folder.path)
    assert len(layer) == releases
    for name, value in layer.items():
        assert any(torch.equal(value, saved) for key, saved in state.items() if f"normalise.{name}" in key)
    assert releases == 2 or not torch.equal(layer["mixing"], torch.eye(len(layer["mixing"])))


@pytest.mark.slow
def test_trainings_one_after_the_other_have_a_ledger_each(tmp_path, capsys):
    for name in ("one", "two"):
        result = train_from_config(config(), tmp_path / name, callbacks=[Silence()])
        assert not any("different ledger" in note for note in result.report.spent.notes)
    assert "different ledger" not in capsys.readouterr().out


def test_nothing_is_released_before_the_training_begins():
    training = build_training(config())
    assert training.model.ledger.total == 0
    assert training.model.network.normalise.mean.tolist() == [[[0.0]]]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("private", "normalise must be a mapping"),
        ({"name": "public"}, "normalise.name"),
        ({**NORMALISE, "norm_bound": -1.0}, "norm_bound must be a positive"),
        ({key: NORMALISE[key] for key in ("name", "noise_multiplier", "norm_bound")}, "square_bound is missing"),
    ],
)
def test_wrong_settings_are_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        config(normalise=section)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_bound": 1e200}, "norm_bound must lie between 1e-100 and 1e\\+100"),
        ({"square_bound": 1e-200}, "square_bound must lie between"),
        ({"min_variance": 1e-90}, "min_variance must be at least 1e-70, got 1e-90"),
        ({"noise_multiplier": 1e150}, "noise_multiplier must lie between"),
    ],
)
def test_numbers_that_no_release_can_have_are_refused_before_the_training(change, message):
    with pytest.raises(ConfigError, match=rf"normalise: {message}"):
        build_training(config(normalise={**NORMALISE, **change}, privacy={"noise_multiplier": 1.0}))


def test_statistics_that_cost_more_than_the_target_are_refused():
    with pytest.raises(ConfigError, match="target"):
        plan_training(config(normalise={**NORMALISE, "noise_multiplier": 0.2}), 60)
