"""Opacus' CIFAR-10 tutorial: as a script, and as a configuration."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpmodel.cli.application import run
from dpmodel.config import load_config
from dpmodel.planning.training_plan import plan_training
from monitors import GaussianEvent, Ledger, PLDAccountant, PoissonSampledEvent, RDPAccountant

ROOT = Path(__file__).parents[2]
SCRIPT, CONFIG = ROOT / "examples" / "cifar10_resnet18.py", ROOT / "configs" / "cifar10_resnet18.yaml"

#: What the tutorial prints.
SIGMA, EPSILON, STEPS, RATE = 0.39066894531249996, 47.21, 1940, 512 / 50_000


def script():
    spec = importlib.util.spec_from_file_location("cifar10_resnet18_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of ten classes with a few 32 x 32 images."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, size in (("train", 4), ("test", 1)):
        for name in "abcdefghij":
            (root / part / name).mkdir(parents=True)
            for index in range(size):
                pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    return root


def test_script_and_configuration_have_the_settings_of_the_tutorial():
    config, example = load_config(CONFIG), script()
    privacy = config.privacy
    assert (privacy.norm_bound, privacy.target_epsilon, privacy.delta) == (1.2, 50.0, 1e-5)
    assert (config.optimizer.name, config.optimizer.options) == ("RMSprop", {"lr": 1e-3})
    training = config.training
    assert (training.epochs, training.batch_size, config.performance.physical_batch_size) == (20, 512, 128)
    assert privacy.norm_bound == example.MAX_GRAD_NORM
    assert (privacy.target_epsilon, privacy.delta, privacy.accountant) == (
        example.EPSILON,
        example.DELTA,
        example.ACCOUNTANT,
    )
    assert (training.epochs, training.batch_size) == (example.EPOCHS, example.BATCH_SIZE)
    assert config.performance.physical_batch_size == example.MAX_PHYSICAL_BATCH_SIZE
    assert tuple(config.data.options["mean"]) == example.CIFAR10_MEAN
    assert tuple(config.data.options["std"]) == example.CIFAR10_STD_DEV


def test_the_multiplier_is_below_that_of_the_tutorial_at_its_target():
    plan = plan_training(load_config(CONFIG))
    assert (plan.steps, plan.steps_per_epoch) == (STEPS, 97)
    assert plan.noise_multiplier == pytest.approx(0.3717, abs=1e-4)
    assert plan.privacy_spent().epsilon <= 50.0
    assert plan_training(load_config(CONFIG, ["privacy.accountant=rdp"])).noise_multiplier < SIGMA


def test_the_tutorial_spends_what_it_prints():
    ledger = Ledger().record(PoissonSampledEvent(RATE, GaussianEvent(SIGMA)), STEPS)
    assert RDPAccountant().epsilon(ledger, 1e-5) == pytest.approx(EPSILON, abs=0.1)
    assert PLDAccountant().epsilon(ledger, 1e-5) == pytest.approx(42.19, abs=0.01)


def test_the_budget_command_answers_without_data(capsys):
    assert run(["budget", str(CONFIG)]) == 0
    text = capsys.readouterr().out
    assert "20 epochs, 1,940 steps" in text
    assert "0.3716" in text


@pytest.mark.slow
def test_the_script_trains_privately(pictures, capsys):
    metrics = script().main(
        [
            *("--images", str(pictures), "--epochs", "1", "--batch-size", "20"),
            *("--physical-batch-size", "8", "--print-every", "1"),
        ]
    )
    text = capsys.readouterr().out
    assert 0 <= metrics["accuracy"] <= 1
    assert "layers to replace: 20\nlayers to replace: 0\n" in text
    assert "step 1: epsilon" in text
    assert "epsilon 49.9" in text


@pytest.mark.slow
def test_the_configuration_trains_on_folders_of_images(pictures, tmp_path, capsys):
    changes = {
        "data.name": "image_folder",
        "data.root": pictures,
        "training.epochs": 1,
        "training.batch_size": 20,
        "performance.physical_batch_size": 8,
        "privacy.monitor.per_print_times": 1,
    }
    options = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    assert run(["train", str(CONFIG), "-o", str(tmp_path / "run"), *options]) == 0
    text = capsys.readouterr().out
    assert "11,181,642 parameters" in text
    assert "step 2: epsilon 49.9" in text
    assert Ledger.load(tmp_path / "run" / "ledger.json").total == 2
    assert run(["eval", str(tmp_path / "run")]) == 0
