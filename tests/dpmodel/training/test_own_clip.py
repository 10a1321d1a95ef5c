"""Each model has a clip mechanism of its own: a bound learned from data is a release on one ledger."""

import threading
from dataclasses import dataclass

import numpy as np
import pytest

from dpmodel import ClipMechanismsFactory
from mechanisms.clipping import Fixed


def test_a_bound_that_one_model_learned_reaches_no_other(make_model, loader):
    clip = ClipMechanismsFactory.create("Gaussian", fraction_stddev=20.0)
    first, second = make_model(clip_mech=clip), make_model(clip_mech=clip)
    first.fit(loader, 2)
    assert first.clip_mech is clip
    assert first.clip_mech.norm_bound != 1.0
    assert second.clip_mech.norm_bound == 1.0


class Dithered(Fixed):
    """Draws from a generator of the user."""

    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(3)


class Locked(Fixed):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@dataclass
class ByValue(Fixed):
    """Has no hash, since it is compared by value."""

    strength: float = 1.0

    def __post_init__(self):
        super().__init__()


def test_equal_clip_mechanisms_are_different_ones(make_model):
    one, equal = ByValue(), ByValue()
    assert make_model(clip_mech=one).clip_mech is one
    assert make_model(clip_mech=equal).clip_mech is equal
    assert make_model(clip_mech=one).clip_mech is not one


def test_a_copied_clip_mechanism_draws_numbers_of_its_own(make_model):
    clip = Dithered()
    first, second = make_model(clip_mech=clip).clip_mech, make_model(clip_mech=clip).clip_mech
    assert first is clip
    assert first.generator.random() != second.generator.random()
    locked = Locked()
    make_model(clip_mech=locked)
    with pytest.raises(ValueError, match="make a new one for each model"):
        make_model(clip_mech=locked)
