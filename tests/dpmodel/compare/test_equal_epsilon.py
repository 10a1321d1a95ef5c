import json

import pytest

from dpmodel.compare import make_comparison
from dpmodel.compare.equal_epsilon import TOLERANCE, calibrate_variants, within_target
from monitors.errors import ConfigError

VARIANTS = {
    "fixed": {},
    "Time": {"privacy.noise": {"name": "AdaGaussian", "decay_policy": "Time", "noise_decay_rate": 0.1}},
    "Step": {"privacy.noise": {"name": "AdaGaussian", "decay_policy": "Step", "noise_decay_rate": 0.1}},
    "rising": {"privacy.noise": {"name": "ShapedGaussian", "final_ratio": 2.0, "last_step": 5}},
    "Linear": {"privacy.clip": {"name": "Gaussian", "decay_policy": "Linear", "fraction_stddev": 0.1}},
    "Geometric": {"privacy.clip": {"name": "Gaussian", "decay_policy": "Geometric", "fraction_stddev": 0.1}},
    "Automatic": {"privacy.clip": {"name": "Automatic"}},
    "bigger batch": {"training.batch_size": 60},
    "groups": {"privacy.micro_batches": 5},
    "banded": {"privacy.sampling": "cyclic_poisson", "privacy.noise": {"name": "BandedMF", "bands": "auto"}},
}


@pytest.mark.parametrize(("accountant", "epsilon"), [("rdp", 0.5), ("pld", 8.0)])
def test_every_schedule_and_clip_mechanism_spends_the_target_and_never_more(tiny, accountant, epsilon):
    tiny["target"] = {"epsilon": epsilon, "delta": 1e-5, "accountant": accountant}
    tiny["variants"] = [{"name": name, "set": settings} for name, settings in VARIANTS.items()]
    found = calibrate_variants(make_comparison(tiny), None)
    assert [variant.name for variant in found] == list(VARIANTS)
    for variant in found:
        spent = variant.plan.privacy_spent(accountant).epsilon
        assert epsilon * (1 - TOLERANCE) <= spent <= epsilon
    # decaying noise must start higher; the charged count and the doubled sensitivity need more noise
    first = {variant.name: variant.plan.noise_multiplier for variant in found}
    assert first["Time"] > first["fixed"] > first["rising"]
    assert first["Linear"] == first["Geometric"] > first["fixed"] == first["Automatic"]
    assert first["groups"] == pytest.approx(2 * first["fixed"], rel=1e-3)


@pytest.mark.parametrize("epsilon", [1e-6, 1e9])
def test_a_target_that_cannot_be_met_is_refused_before_training(tiny, epsilon):
    tiny["target"] = {"epsilon": epsilon, "accountant": "rdp"}
    tiny["variants"][1]["set"] = {"privacy.clip": {"name": "Gaussian", "fraction_stddev": 0.05}}
    with pytest.raises(ConfigError, match="target"):
        calibrate_variants(make_comparison(tiny), None)


def test_variants_that_protect_different_neighbours_are_not_compared(tiny):
    tiny["target"]["accountant"] = "rdp"
    tiny["variants"][1]["set"] = {"privacy.sampling": "shuffle"}
    with pytest.raises(ConfigError, match="Equal epsilons would not mean equal privacy"):
        calibrate_variants(make_comparison(tiny), None)


def test_a_stored_multiplier_is_used_only_if_it_still_meets_the_target(tiny, tmp_path):
    cache, comparison = tmp_path / "multipliers.json", make_comparison(tiny)
    first = calibrate_variants(comparison, cache)
    stored = json.loads(cache.read_text())
    assert set(stored.values()) == {variant.plan.noise_multiplier for variant in first}
    cache.write_text(json.dumps(dict.fromkeys(stored, 0.5)))
    again = calibrate_variants(comparison, cache)
    assert [variant.plan.noise_multiplier for variant in again] == [variant.plan.noise_multiplier for variant in first]


def test_an_open_number_of_bands_is_found_again_at_a_stored_multiplier(tiny, tmp_path):
    tiny["variants"] = [{"name": name, "set": VARIANTS[name]} for name in ("fixed", "banded")]
    comparison, cache = make_comparison(tiny), tmp_path / "multipliers.json"
    solved = calibrate_variants(comparison, cache)
    for found in (calibrate_variants(comparison, cache), calibrate_variants(comparison, cache, solve=False)):
        assert [one.plan.config for one in found] == [one.plan.config for one in solved]
    assert solved[1].plan.release.noise.bands > 1


def test_a_network_that_does_not_fit_the_data_is_refused_before_training(tiny):
    tiny["variants"][1]["set"] = {"network": {"name": "lenet5"}}
    with pytest.raises(ConfigError, match="network"):
        calibrate_variants(make_comparison(tiny), None)


def test_equal_means_at_most_a_thousandth_below_and_never_above():
    assert within_target(3.0, 3.0)
    assert within_target(3.0 * (1 - TOLERANCE), 3.0)
    assert not within_target(3.0 * (1 - 2 * TOLERANCE), 3.0)
    assert not within_target(3.0000001, 3.0)
