import dataclasses
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmodel.claims.verification import NOT_COVERED
from dpmodel.config import make_config
from dpmodel.planning.release import NOT_VERIFIED
from dpmodel.planning.training_plan import plan_training
from dpmodel.runs.report import make_report, report_in_words
from monitors.events import ViolationEvent
from monitors.spent import epsilon_text

BASE = {
    "network": "lenet5",
    "optimizer": "SGD",
    "privacy": {"noise_multiplier": 1.5},
    "training": {"epochs": 2, "batch_size": 50},
}


def report(*overrides, steps=None):
    plan = plan_training(make_config(BASE, overrides), 1000)
    steps = plan.steps if steps is None else steps
    return make_report(plan.subject, plan.ledger(steps), steps)


def test_the_words_name_everything_that_the_figure_depends_on():
    words = report_in_words(report())
    for text in (
        "add or remove one example",
        "Poisson, rate 50/1000",
        "| Accountant | rdp |",
        "1e-05",
        "multiplier 1.5",
        "40 of 40 planned",
        "Training loss",
        "Evaluation data",
        "Hyper-parameter tuning",
    ):
        assert text in words


def test_micro_batches_and_the_clip_count_are_explained():
    words = report_in_words(report("privacy.micro_batches=5", "privacy.clip.name=Gaussian"))
    assert "by 2 times the bound, so 0.75 is what counts" in words
    assert "sensitivity 2 x norm bound" in words
    assert "the noisy statistic that moves it is charged" in words


@pytest.mark.slow
def test_a_decaying_multiplier_is_given_at_both_ends():
    noise = "privacy.noise={name: AdaGaussian, decay_policy: Time, noise_decay_rate: 0.1}"
    assert "multiplier 1.5 at the first step, 0.306122 at the last" in report_in_words(report(noise))


def test_public_constants_of_the_data_are_called_so():
    assert "data.mean and data.std" in report_in_words(report("data.mean=0.13", "data.std=0.31"))
    assert "data.mean" not in report_in_words(report())


def test_a_useless_epsilon_is_called_useless():
    words = report_in_words(report("privacy.noise_multiplier=0.03"))
    assert "practically no formal guarantee" in words
    assert "protects nobody in practice" in words


def test_without_noise_nothing_is_claimed():
    made = report("privacy.noise=null", "privacy.noise_multiplier=null")
    words = report_in_words(made)
    assert "NOT differentially private: epsilon is infinite" in words
    assert "satisfies" not in words
    assert made.to_dict()["epsilon"] == "inf"


def test_notes_of_the_ledger_are_caveats():
    words = report_in_words(report("privacy.noise.seed=3"))
    assert "## Caveats" in words
    assert "reproducible noise: no guarantee" in words
    assert words.splitlines()[2].startswith("**This training has NO guarantee: reproducible noise: no guarantee.**")


def test_nothing_is_promised_without_a_guarantee():
    plan = plan_training(make_config(BASE), 1000)
    ledger = plan.ledger()
    ledger.add_note(NOT_VERIFIED)
    for made in (report("privacy.noise.seed=3"), make_report(plan.subject, ledger, plan.steps)):
        words = report_in_words(made)
        assert "at most e^epsilon" not in words
        assert "## What the guarantee says\n\nNothing, because a condition of the guarantee is not met" in words
        assert "| Epsilon by rdp | no guarantee |" in words
    assert "secret randomness" not in words
    assert "knows the seed" not in words
    assert "The ledger states (1.286, 1e-05)-differential privacy for one example, which does not hold" in words


def test_what_is_not_covered_stands_below_the_claim():
    first = report_in_words(report()).split("\n\n")[2]
    assert first == 'Not covered: Validation (see "All accesses to data").'
    declared = "card.accesses=[{kind: tuning, description: 20 runs}, {kind: other, description: x, privacy: public}]"
    more = report_in_words(report("data.validation=100", "callbacks=[EarlyStopping]", declared)).split("\n\n")[2]
    assert more.startswith("Not covered: Validation; Early stopping and choice of a checkpoint; Tuning (see")
    for accesses in ({}, {"accesses": 7}):
        old = dataclasses.replace(report(), card={"accesses": accesses})
        assert "Whether other accesses to data were made is not stated." in report_in_words(old)


def test_a_delta_that_says_little_is_pointed_out():
    small, large = (report_in_words(report(f"privacy.delta={delta}")) for delta in ("9e-4", "1e-2"))
    assert "not below 1 /" not in small
    assert "too large to mean much" in large
    assert "delta 0.01 is not below 1 / 1,000 examples" in large


def test_the_statistic_of_the_clipping_is_stated_as_it_is_charged():
    made = report("privacy.clip.name=Gaussian", "privacy.sampling=shuffle")
    stated = made.to_dict()["mechanism"]["clip_count_event"]["noise_multiplier"]
    assert stated == pytest.approx(0.01 * 50 / 1.0)


def test_the_table_survives_any_text():
    made = report()
    strange = dataclasses.replace(made, status="a | b\nc")
    rows = [line for line in report_in_words(strange).splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)


def test_the_json_report_holds_plain_values_only():
    values = json.loads(report("privacy.micro_batches=5").to_json(), parse_constant=pytest.fail)
    assert values["format"] == "dpmodel-privacy-report/1"
    assert values["tuning"] == "not accounted"
    assert values["mechanism"]["sensitivity_factor"] == 2.0
    assert values["epsilon"] == values["epsilon_by_accountant"]["rdp"]


@given(st.floats(0, 1e9))
def test_an_epsilon_is_never_shown_smaller_than_it_is(epsilon):
    assert float(epsilon_text(epsilon).replace(",", "")) >= epsilon * (1 - 1e-12)


def test_an_infinite_epsilon_is_called_infinite():
    assert epsilon_text(math.inf) == "infinite"


def test_a_violation_is_the_first_thing_that_the_report_says():
    plan = plan_training(make_config(BASE), 1000)
    ledger = plan.ledger(plan.steps)
    assert make_report(plan.subject, ledger, plan.steps).to_dict()["guarantee"] == "holds"
    ledger.record(ViolationEvent("the weights were overwritten; not verified since step 7"))
    void = make_report(plan.subject, ledger, plan.steps, status="failed")
    values, words = void.to_dict(), report_in_words(void)
    assert (values["guarantee"], values["epsilon"]) == ("void", "inf")
    assert values["violations"] == ["the weights were overwritten; not verified since step 7"]
    assert words.split("\n\n")[1].startswith("**The guarantee is void: the weights were overwritten")
    assert "NOT differentially private" not in words
    json.dumps(values)


def test_a_training_without_a_guarantee_is_not_called_void():
    assert report("privacy.noise_multiplier=null", "privacy.noise=null").to_dict()["guarantee"] == "none"
    seeded = report("privacy.noise={name: Gaussian, seed: 3}")
    stated = seeded.to_dict()
    assert (stated["guarantee"], stated["epsilon"], stated["epsilon_without_lost_steps"]) == ("none", "inf", "inf")
    assert not math.isinf(seeded.spent.epsilon)
    assert not [value for value in stated["epsilon_by_accountant"].values() if isinstance(value, float)]


def test_what_was_verified_and_what_no_check_covers_is_listed():
    plan = plan_training(make_config(BASE), 1000)
    verified = make_report(plan.subject, plan.ledger(3), 3, verified=["Everything was looked at twice."])
    assert verified.to_dict()["verified"] == ["Everything was looked at twice."]
    assert verified.to_dict()["not_covered"] == list(NOT_COVERED)
    words = report_in_words(verified)
    assert "## What was verified\n\n- Everything was looked at twice." in words
    assert all(f"- {sentence}" in words for sentence in NOT_COVERED)
    assert "No verification is recorded" in report_in_words(report())
