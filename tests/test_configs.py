"""Every configuration of the repository loads, can be planned, and meets its target epsilon."""

import re
from pathlib import Path

import pytest

from dpmodel.config import load_config
from dpmodel.config.marked_yaml import read_yaml
from dpmodel.planning.training_plan import plan_training

ROOT = Path(__file__).parents[1]
#: Trainings only; comparisons and searches, which contain a training, have separate tests.
CONFIGS = [
    path
    for path in sorted((ROOT / "configs").rglob("*.yaml"))
    if "training" in read_yaml(path.read_text(), path.name).values
]

#: Data sets that are not in a clone, and settings for data of the same shape.
STAND_INS = {
    "cifar10": ["data.name=synthetic", "data.shape=[3, 32, 32]", "data.num_train=5000"],
    "fashion_mnist": ["data.name=synthetic", "data.shape=[1, 28, 28]", "data.num_train=5000"],
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.sample(18)
def test_a_configuration_builds_and_keeps_its_target(path, tmp_path, monkeypatch):
    from dpmodel.runs.build import build_training

    monkeypatch.setenv("DPMODEL_CACHE", str(tmp_path))  # features are kept there
    config = load_config(path)
    target = config.privacy.target_epsilon
    if target is not None:
        assert plan_training(config).privacy_spent().epsilon <= target
    changes = ["data.limit=5000", "data.test_limit=10", *STAND_INS.get(config.data.name, [])]
    if config.features is not None:  # their computation takes a second for a thousand images
        changes += ["data.limit=300", "training.batch_size=200"]
    assert build_training(load_config(path, changes)).plan.steps > 0
    assert f"dpmodel train {path.relative_to(ROOT).as_posix()}" in path.read_text()


def test_the_published_configurations_exist():
    expected = {"lenet5_mnist", "lenet5_mnist_relu", "lenet5_mnist_adaptive", "lenet5_mindarmour"}
    assert expected <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("name", ["lenet5_mnist", "lenet5_mnist_relu", "lenet5_mnist_adaptive"])
def test_the_main_configurations_target_epsilon_3(name):
    privacy = load_config(ROOT / "configs" / f"{name}.yaml").privacy
    assert (privacy.target_epsilon, privacy.delta) == (3.0, 1e-5)


def test_the_adaptive_configuration_adapts_both_noise_and_bound():
    plan = plan_training(load_config(ROOT / "configs" / "lenet5_mnist_adaptive.yaml"))
    assert plan.release.noise.noise_multiplier(plan.steps - 1) < plan.noise_multiplier
    assert plan.release.clip.event(0, plan.release.unit) is not None


def test_the_settings_of_the_tutorial_are_unchanged_and_spend_over_a_thousand():
    config = load_config(ROOT / "configs" / "lenet5_mindarmour.yaml")
    privacy, training = config.privacy, config.training
    assert (training.batch_size, training.epochs, privacy.micro_batches, privacy.norm_bound) == (256, 10, 32, 1.0)
    assert privacy.noise_multiplier == 0.05
    assert config.optimizer.options == {"learning_rate": 0.01, "momentum": 0.9}
    assert privacy.clip.options == {
        "decay_policy": "Linear",
        "learning_rate": 0.001,
        "target_unclipped_quantile": 0.9,
        "fraction_stddev": 0.01,
    }
    assert plan_training(config).privacy_spent().epsilon > 1000


@pytest.mark.parametrize("path", [*CONFIGS, ROOT / "examples" / "custom_mechanism.yaml"], ids=lambda path: path.stem)
def test_a_configuration_needs_no_file_outside_a_clone(path):
    assert not re.search(r"(^|\s)(/|~)\w", path.read_text())


def test_every_speed_setting_reaches_the_model():
    from dpmodel.runs.build import build_training

    asked = {"engine": "bookkeeping", "physical_batch_size": 8, "precision": "bf16"}
    asked |= {"timed_plans": True, "static_shapes": True}
    changes = [f"performance.{name}={str(value).lower()}" for name, value in asked.items()]
    model = build_training(
        load_config(ROOT / "configs/lenet5_mnist_short.yaml", ["data.limit=1024", "data.test_limit=10", *changes])
    ).model
    assert {name: getattr(model, name) for name in asked} == asked
