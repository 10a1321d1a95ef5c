"""Mechanisms are printed with their relevant settings."""

import pytest

from mechanisms import ClipMechanismsFactory, NoiseMechanism, NoiseMechanismsFactory
from mechanisms.noise import Gaussian, NoNoise

NOISE, CLIP = NoiseMechanismsFactory.create, ClipMechanismsFactory.create


class TwoPhase(Gaussian):
    """A plugin's mechanism that forwards its other arguments."""

    def __init__(self, *, switch, **common):
        super().__init__(**common)
        self.switch = switch


@pytest.mark.parametrize(
    ("mechanism", "printed"),
    [
        (NOISE("Gaussian", initial_noise_multiplier=1.25), "Gaussian(initial_noise_multiplier=1.25)"),
        (NOISE("Gaussian", seed=3), "Gaussian(initial_noise_multiplier=1, reproducible: no guarantee)"),
        (
            NOISE("AdaGaussian", noise_decay_rate=0.5, decay_policy="Time"),
            "AdaGaussian(initial_noise_multiplier=1, noise_decay_rate=0.5, decay_policy='Time')",
        ),
        (
            NOISE("ShapedGaussian", last_step=80),
            "ShapedGaussian(initial_noise_multiplier=1, last_step=80, final_ratio=0.5, path='Linear', first_step=0)",
        ),
        (TwoPhase(switch=7, initial_noise_multiplier=2.0), "TwoPhase(switch=7, initial_noise_multiplier=2)"),
        (NoNoise(), "NoNoise(): not private"),
        (CLIP("Fixed"), "Fixed()"),
        (CLIP("Automatic"), "Automatic(stability=0.01)"),
    ],
)
def test_the_settings_of_a_mechanism_are_printed(mechanism, printed):
    assert repr(mechanism) == str(mechanism) == printed


def test_the_bound_in_force_is_printed_first():
    clip = CLIP("Gaussian", learning_rate=0.2)
    clip.start(0.5)
    assert repr(clip).startswith("QuantileClip(norm_bound=0.5, decay_policy='Linear', learning_rate=0.2, ")


def test_no_key_and_no_private_value_is_printed():
    secret = NOISE("Gaussian")
    assert isinstance(secret, NoiseMechanism)
    assert "generator" not in repr(secret)
