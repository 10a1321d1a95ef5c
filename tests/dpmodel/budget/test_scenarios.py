import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.budget import answer_budget
from dpmodel.config import make_config
from monitors.gaussian import gaussian_epsilon

BASE = {
    "network": "lenet5",
    "optimizer": "SGD",
    "privacy": {"noise_multiplier": 1.5},
    "training": {"epochs": 3, "batch_size": 50},
}


def rows_of(*overrides):
    return {row.name: row for row in answer_budget(make_config(BASE, overrides), 1000).scenarios}


@settings(max_examples=15, deadline=None)
@given(multiplier=st.floats(0.3, 20), epochs=st.integers(1, 20))
def test_shuffled_figures_are_the_exact_gaussian_formula(multiplier, epochs):
    rows = rows_of(f"privacy.noise_multiplier={multiplier!r}", f"training.epochs={epochs}")
    mu = math.sqrt(epochs) / multiplier
    assert rows["shuffle, zero out one"].figures["zcdp"] == pytest.approx(gaussian_epsilon(mu, 1e-5), rel=1e-9)
    assert rows["shuffle, replace one"].figures["zcdp"] == pytest.approx(gaussian_epsilon(2 * mu, 1e-5), rel=1e-9)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["privacy.micro_batches=5"],
        ["privacy.sampling=shuffle"],
        ["privacy.sampling=shuffle", "privacy.micro_batches=5"],
    ],
)
def test_exactly_one_rule_is_the_configured_one_with_the_answers_figure(overrides):
    answer = answer_budget(make_config(BASE, overrides), 1000)
    configured = [row for row in answer.scenarios if row.configured]
    assert len(configured) == 1
    assert configured[0].figures["rdp"] == answer.figures["rdp"]


def test_a_batch_of_one_has_no_micro_batches():
    assert not any("micro-batches" in name for name in rows_of("training.batch_size=1"))


def test_the_clip_count_is_charged_in_every_row():
    plain = rows_of()
    charged = rows_of("privacy.clip={name: Gaussian, fraction_stddev: 0.01}")
    assert plain.keys() == charged.keys()
    for name, row in plain.items():
        assert charged[name].best[0] > 1.2 * row.best[0]
