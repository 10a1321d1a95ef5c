"""The worked example of a third party's mechanism: its noise, its event, its accounting."""

import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmodel.cli.application import run
from dpmodel.config import load_config
from dpmodel.planning.training_plan import plan_training
from mechanisms import NoiseMechanismsFactory
from monitors.errors import UnsupportedEventError
from monitors.ledger import Ledger

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example():
    import sys

    from dpmodel.config.plugins import import_plugin, locate_plugin

    import_plugin(locate_plugin("custom_mechanism.py", EXAMPLES))
    return sys.modules["custom_mechanism"]


def test_the_script_runs_and_is_private(example, capsys):
    spent = example.main(epochs=1)
    assert set(spent) == {"CosineGaussian", "KNorm"}
    assert all(0 < epsilon < 10 for epsilon in spent.values())
    assert "KNorm: accuracy" in capsys.readouterr().out


def test_from_yaml_the_target_is_met_through_its_own_event(example, tmp_path, capsys):
    assert run(["train", str(EXAMPLES / "custom_mechanism.yaml"), "-o", str(tmp_path / "run"), "-q"]) == 0
    ledger = Ledger.load(tmp_path / "run" / "ledger.json")
    plan = plan_training(load_config(EXAMPLES / "custom_mechanism.yaml"))
    assert ledger.rows == plan.ledger().rows
    assert ledger.notes == (
        "the scale of the noise of KNorm was not tried: its event (KNormEvent) does not state normal noise",
    )
    assert isinstance(ledger.rows[0][0].event, example.KNormEvent)
    assert plan.privacy_spent().epsilon <= 3.0
    assert run(["eval", str(tmp_path / "run")]) == 0


def test_the_cosine_goes_from_the_first_to_the_last_multiplier(example):
    noise = NoiseMechanismsFactory.create(
        "CosineGaussian", initial_noise_multiplier=2.0, decay_steps=100, final_ratio=0.25
    )
    values = [noise.noise_multiplier(step) for step in range(150)]
    assert values[0] == 2.0
    assert values[50] == pytest.approx(1.25)
    assert values[100:] == pytest.approx([0.5] * 50)
    assert values == sorted(values, reverse=True)
    assert noise.event(50).noise_multiplier == pytest.approx(1.25)


def test_the_radius_and_direction_of_the_noise_are_as_stated(example):
    size, draws, scale = 5, 4000, 3.0
    noise = NoiseMechanismsFactory.create("KNorm", initial_noise_multiplier=scale, seed=11)
    samples = np.stack([noise.sample(size, 0).numpy() for _ in range(draws)])
    radii = np.linalg.norm(samples, axis=1)
    # Gamma(size, scale): mean size * scale, variance size * scale^2
    assert radii.mean() == pytest.approx(size * scale, abs=5 * scale * math.sqrt(size / draws))
    assert radii.var() == pytest.approx(size * scale**2, rel=0.15)
    assert np.abs((samples / radii[:, None]).mean(axis=0)).max() < 5 / math.sqrt(size * draws)


@given(epsilon=st.floats(1e-3, 3.0), order=st.floats(1.01, 50))
def test_the_renyi_bound_lies_above_that_of_randomised_response(example, epsilon, order):
    # Randomised response is the worst of all epsilon-private mechanisms.
    p = 1 / (1 + mpmath.e**-epsilon)
    moment = p**order * (1 - p) ** (1 - order) + (1 - p) ** order * p ** (1 - order)
    exact = float(mpmath.log(moment) / (order - 1))
    assert example.pure_renyi_curve(epsilon, np.array([order]))[0] >= exact * (1 - 1e-9)


@given(epsilon=st.floats(1e-3, 500), rate=st.floats(1e-6, 0.999))
def test_sampling_amplifies_as_the_theorem_says(example, epsilon, rate):
    exact = float(mpmath.log(1 + mpmath.mpf(rate) * mpmath.expm1(epsilon)))
    assert example.amplified(epsilon, rate) == pytest.approx(exact, rel=1e-9)
    assert example.amplified(epsilon, rate) <= epsilon


def test_micro_batches_cost_this_mechanism_double_too(example):
    noise = NoiseMechanismsFactory.create("KNorm", initial_noise_multiplier=4.0)
    assert noise.event(0, 1.0).scale == 2 * noise.event(0, 2.0).scale


def test_together_with_adaptive_clipping_it_is_refused_and_not_miscounted(example):
    config = load_config(
        EXAMPLES / "custom_mechanism.yaml",
        ["privacy.clip.name=Gaussian", "privacy.noise_multiplier=9", "privacy.target_epsilon=null"],
    )
    with pytest.raises(UnsupportedEventError, match="KNormEvent"):
        plan_training(config).privacy_spent()


@pytest.mark.parametrize("options", [{"decay_steps": 0}, {"decay_steps": 5, "final_ratio": 0.0}])
def test_wrong_arguments_are_refused(example, options):
    with pytest.raises(ValueError, match="got 0"):
        NoiseMechanismsFactory.create("CosineGaussian", **options)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_wrong_scale_is_refused(example, scale):
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        example.KNormEvent(scale)
