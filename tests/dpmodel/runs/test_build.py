"""Configurations with networks of other packages, and with layers that are replaced."""

import pytest
from torch import nn

from dpmodel.config import make_config
from dpmodel.nets import build_network
from dpmodel.runs.build import build_task, build_training
from dpmodel.runs.evaluate import evaluate_run
from dpmodel.runs.train import train_from_config
from monitors.errors import ConfigError

TINY = {
    "data": {"name": "synthetic", "shape": [1, 4, 4], "num_train": 60, "num_test": 20, "num_classes": 3},
    "network": {"module": f"{__name__}:normalised"},
    "optimizer": {"name": "SGD", "lr": 0.5},
    "privacy": {"noise_multiplier": 2.0},
    "training": {"epochs": 1, "batch_size": 20},
    "output": {"curve": False},
}


def normalised(**options):
    """Like a builder of torchvision: takes any keyword, and refuses unknown ones inside."""
    return _normalised(**options)


def _normalised(num_classes=1000, width=8):
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(4 * width, num_classes)
    )


def pretrained(**options):
    if options.get("num_classes", 5) != 5:
        raise ValueError("num_classes must be 5 for these weights")
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5))


def test_network_fix_replaces_layers_and_the_run_folder_can_be_evaluated(tmp_path):
    result = train_from_config(make_config(TINY, ["network.fix=true"]), tmp_path / "run")
    assert result.report.steps == 3
    assert evaluate_run(tmp_path / "run").metrics == pytest.approx(result.metrics)


def test_the_model_trains_with_the_mechanisms_of_the_plan():
    training = build_training(
        make_config(TINY, ["network.fix=true", "privacy.noise_multiplier=null", "privacy.target_epsilon=3"])
    )
    release = training.plan.release
    assert (training.model.noise_mech, training.model.clip_mech) == (release.noise, release.clip)
    assert training.config.privacy.noise_multiplier == release.noise.noise_multiplier(0)


def test_without_fix_the_error_names_it():
    with pytest.raises(ConfigError, match=r"GroupNorm\(4, 8\)[\s\S]*network.fix: true"):
        build_task(make_config(TINY))


def test_fix_must_be_true_or_false():
    with pytest.raises(ConfigError, match=r"network\.fix must be true or false, got 'yes please'"):
        make_config(TINY, ["network.fix=yes please"])


def test_a_builder_that_takes_any_keyword_gets_the_number_of_classes():
    network = build_task(make_config(TINY, ["network.fix=true", "network.width=4"])).network
    assert (network[0].out_channels, network[-1].out_features) == (4, 3)


def test_a_builder_that_refuses_the_number_of_classes_is_built_without_it():
    network = build_task(make_config(TINY, ["network={module: '" + __name__ + ":pretrained'}"])).network
    assert network[-1].out_features == 5


def test_a_wrong_argument_is_named_by_the_builder_itself():
    with pytest.raises(ConfigError, match="unexpected keyword argument 'widht'"):
        build_task(make_config(TINY, ["network.fix=true", "network.widht=4"]))


def test_a_network_of_torchvision_has_the_classes_of_the_data():
    pytest.importorskip("torchvision")
    defaults = {"num_classes": 7, "in_features": 3072, "in_channels": 3, "image_size": 32}
    network = build_network(module="torchvision.models:squeezenet1_1", defaults=defaults, seed=0)
    assert network.classifier[1].out_channels == 7
