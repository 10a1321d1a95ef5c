import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.config import make_config
from dpmodel.planning.longest import longest_training
from dpmodel.planning.release import ReleasePlan
from dpmodel.planning.stretches import is_steady, plan_stretches
from dpmodel.planning.training_plan import KNOWN_SIZES, expected_examples, plan_training
from mechanisms.clipping import Fixed
from mechanisms.factory import NoiseMechanismsFactory
from mechanisms.noise import Gaussian
from mechanisms.sampling import PoissonSampler, ShuffleSampler
from mechanisms.units import ClippedUnit
from monitors import RDPAccountant, ZCDPAccountant
from monitors.accountant import ACCOUNTANTS
from monitors.errors import ConfigError
from monitors.events import GaussianEvent, PoissonSampledEvent

BASE = {
    "network": "lenet5",
    "optimizer": "SGD",
    "privacy": {"noise_multiplier": 1.5},
    "training": {"epochs": 2, "batch_size": 50},
}


def config(*overrides):
    return make_config(BASE, overrides)


def test_a_plan_is_the_release_of_each_step():
    ledger = plan_training(config(), 1000).ledger()
    assert ledger.rows == ((PoissonSampledEvent(0.05, GaussianEvent(1.5)), 40),)


@settings(max_examples=25, deadline=None)
@given(first=st.integers(0, 60), second=st.integers(0, 60), rate=st.sampled_from([0.0, 0.01]))
def test_a_plan_gives_the_same_ledger_in_whatever_order_it_is_asked(first, second, rate):
    noise = f"privacy.noise={{name: AdaGaussian, decay_policy: Time, noise_decay_rate: {rate}}}"
    plan = plan_training(config(noise, "training.epochs=3"), 1000)
    for steps in (first, second, first):
        assert plan.ledger(steps) == plan.release.ledger(steps)
        assert plan.ledger(steps).total == steps


@pytest.mark.parametrize("target", [0.5, 3.0, 20.0])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["privacy.noise={name: AdaGaussian, decay_policy: Exp, noise_decay_rate: 0.02}"],
        ["privacy.clip={name: Gaussian, fraction_stddev: 0.5}"],
        ["privacy.micro_batches=5"],
        ["privacy.sampling=shuffle"],
    ],
    ids=["fixed", "decaying", "adaptive clip", "micro-batches", "shuffled"],
)
def test_a_target_is_met_and_never_passed(overrides, target):
    plan = plan_training(config(*overrides, "privacy.noise_multiplier=null", f"privacy.target_epsilon={target}"), 1000)
    reached = plan.privacy_spent().epsilon
    assert reached <= target
    assert reached == pytest.approx(target, rel=1e-3)
    assert plan.target_epsilon == target
    assert plan.config.privacy.target_epsilon is None
    assert plan.config.privacy.noise_multiplier == plan.noise_multiplier


def test_the_most_epochs_are_found_for_a_decaying_schedule():
    decaying = config("privacy.noise={name: AdaGaussian, decay_policy: Time, noise_decay_rate: 0.001}")
    found = longest_training(decaying, 4.0, 1000).config.training.epochs
    plan = plan_training(decaying, 1000)
    assert plan.privacy_spent(epochs=found).epsilon <= 4.0 < plan.privacy_spent(epochs=found + 1).epsilon


def test_the_number_of_examples_comes_from_the_configuration():
    assert expected_examples(config()) == KNOWN_SIZES["mnist"]
    assert expected_examples(config("data.limit=2000")) == 2000
    assert expected_examples(config("data.validation=5000")) == KNOWN_SIZES["mnist"] - 5000
    assert expected_examples(config("data.validation=5000", "data.limit=2000")) == 2000
    assert expected_examples(config("data.name=npz", "data.num_examples=77")) == 77
    with pytest.raises(ConfigError, match=r"'npz' is not known without reading the data; set data\.num_examples"):
        expected_examples(config("data.name=npz"))


def test_the_known_sizes_are_those_of_the_data():
    from dpmodel.data import DATASETS, load_dataset

    assert set(KNOWN_SIZES) <= set(DATASETS.names())
    assert len(load_dataset("mnist").train) == KNOWN_SIZES["mnist"]


def test_a_fault_is_named_with_its_setting():
    with pytest.raises(
        ConfigError, match=r"privacy\.micro_batches: batch_size=50 must be a multiple of micro_batches=7"
    ):
        plan_training(config("privacy.micro_batches=7"), 1000)
    with pytest.raises(ConfigError, match=r"--set privacy\.noise\.name=AdaGaussian.*: privacy\.noise: "):
        plan_training(config("privacy.noise.name=AdaGaussian", "privacy.noise.decay_policy=Sine"), 1000)


@pytest.mark.sample(3)
@pytest.mark.parametrize(("policy", "rate"), [("Exp", 1e-5), ("Time", 3e-5), ("Step", 1e-5)])
def test_a_summary_costs_at_least_what_the_ledger_does_and_hardly_more(policy, rate):
    noise = NoiseMechanismsFactory.create(
        "AdaGaussian", initial_noise_multiplier=6.0, decay_policy=policy, noise_decay_rate=rate
    )
    plan = ReleasePlan(noise, Fixed(), ClippedUnit(1, 50), PoissonSampler(10_000, 50))
    full, short = plan.ledger(40_000), plan.summary(40_000)
    assert (len(full), short.total) == (40_000, 40_000)
    assert len(short) < 20_000
    exact = RDPAccountant().epsilon(full, 1e-5)
    assert exact <= RDPAccountant().epsilon(short, 1e-5) <= exact * (1 + 2e-4)


def test_mechanisms_of_unknown_events_are_summarised_step_by_step():
    class Own(Gaussian):
        def event(self, step, sensitivity_factor=1.0):
            return super().event(step, sensitivity_factor)

    plan = ReleasePlan(Own(), Fixed(), ClippedUnit(1, 50), PoissonSampler(10_000, 50))
    assert not is_steady(plan.noise)
    assert is_steady(Gaussian())
    changed = Gaussian()
    changed.event = lambda step, sensitivity_factor=1.0: GaussianEvent(1.0 + step % 2)
    assert not is_steady(changed)
    assert len(list(plan_stretches(plan.noise, plan.clip, plan.sampler, 0, 20_001))) == 20_001


def test_shuffled_epochs_are_summarised_exactly():
    noise = NoiseMechanismsFactory.create("AdaGaussian", noise_decay_rate=1e-6)
    plan = ReleasePlan(noise, Fixed(), ClippedUnit(1, 10), ShuffleSampler(1000, 10))
    full, short = plan.ledger(30_000), plan.summary(30_000)
    assert len(short) == 300
    accountant = ZCDPAccountant()
    assert accountant.epsilon(short, 1e-5) == pytest.approx(accountant.epsilon(full, 1e-5), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "rate", "accountant"), [("Exp", 3e-5, "pld"), ("Time", 3e-5, "rdp"), ("Step", 3e-5, "rdp")]
)
def test_a_multiplier_solved_from_a_summary_keeps_the_target_step_by_step(policy, rate, accountant):
    steps, target = 21_000, 2.0
    noise = NoiseMechanismsFactory.create("AdaGaussian", decay_policy=policy, noise_decay_rate=rate)
    plan = ReleasePlan(noise, Fixed(), ClippedUnit(1, 10), PoissonSampler(50_000, 10))
    multiplier = plan.multiplier_for(target, 1e-6, steps, accountant)
    # the events of a training, step by step
    spent = ACCOUNTANTS.get(accountant)().epsilon(plan.at(multiplier).ledger(steps), 1e-6)
    assert target * (1 - 1e-3) <= spent <= target
