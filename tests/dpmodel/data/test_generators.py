import random

import numpy as np
import pytest
import torch

from dpmodel.data.generators import Generators

KINDS = {
    "torch": (lambda: torch.Generator().manual_seed(1), lambda g: torch.rand(2, generator=g).tolist()),
    "numpy": (lambda: np.random.default_rng(1), lambda g: g.random(2).tolist()),
    "numpy on MT19937": (
        lambda: np.random.Generator(np.random.MT19937(1)),
        lambda g: g.standard_normal(3).tolist(),
    ),
    "numpy's old one": (lambda: np.random.RandomState(1), lambda g: g.normal(size=3).tolist()),
    "the old on a new one": (lambda: np.random.RandomState(np.random.PCG64(1)), lambda g: g.rand(2).tolist()),
    "bits": (lambda: np.random.PCG64(1), lambda g: g.random_raw(2).tolist()),
    "python": (lambda: random.Random(1), lambda g: [g.gauss(0, 1), g.random()]),
    "global torch": (lambda: torch.default_generator, lambda g: torch.rand(2).tolist()),
    "global numpy": (lambda: np.random.mtrand._rand, lambda g: np.random.normal(size=3).tolist()),
    "global python": (lambda: random._inst, lambda g: [random.gauss(0, 1), random.random()]),
}


@pytest.mark.parametrize(("make", "draw"), KINDS.values(), ids=KINDS.keys())
def test_each_kind_is_reseeded_seeded_and_restored(make, draw):
    generator = make()
    draw(generator)  # normal numbers are drawn in pairs, and the second one is part of the state
    generators = Generators({"kept": generator})
    with generators.preserved():
        followed = draw(generator)
    with generators.preserved():
        drawn = []
        for _ in range(2):
            generators.renew()
            drawn.append(draw(generator))
        assert len({str(value) for value in (*drawn, followed)}) == 3
        equal = []
        for _ in range(2):
            generators.seed(5)
            equal.append(draw(generator))
        assert equal[0] == equal[1]
    assert draw(generator) == followed


def test_generators_of_the_operating_system_are_left_alone():
    with Generators([random.SystemRandom()]).preserved():
        pass


def test_generators_that_appear_later_are_renewed_too():
    held = {}
    generators = Generators(held)
    generators.renew()
    held["late"] = random.Random(1)
    generators.renew()
    assert held["late"].random() != random.Random(1).random()
