import pytest

from dpmodel.budget.curves import draw_curves, epsilon_curves
from dpmodel.config import make_config
from dpmodel.planning.training_plan import plan_training
from monitors import GaussianEvent, PoissonSampledEvent, RDPAccountant

BASE = {
    "network": "lenet5",
    "optimizer": "SGD",
    "privacy": {"target_epsilon": 2.0},
    "training": {"epochs": 2, "batch_size": 50},
}


@pytest.fixture(scope="module")
def plan():
    noise = "privacy.noise={name: AdaGaussian, decay_policy: Exp, noise_decay_rate: 0.01}"
    return plan_training(make_config(BASE, [noise]), 1000)


def test_all_schedules_end_at_the_same_epsilon_and_none_above(plan):
    curves = {curve.name: curve for curve in epsilon_curves(plan)}
    assert set(curves) == {"fixed", "Exp decay", "Step decay", "Time decay"}
    target = plan.privacy_spent().epsilon
    for curve in curves.values():
        assert curve.steps[-1] == plan.steps
        assert list(curve.epsilons) == sorted(curve.epsilons)
        assert curve.epsilons[-1] == pytest.approx(target, rel=3e-4)
        assert curve.epsilons[-1] <= target * (1 + 1e-5)


def test_epsilon_is_that_of_the_ledger_after_each_step(plan):
    fixed, *_ = epsilon_curves(plan)
    assert fixed.steps == tuple(range(1, plan.steps + 1))
    event = PoissonSampledEvent(0.05, GaussianEvent(fixed.multipliers[0]))
    for step, epsilon in zip(fixed.steps, fixed.epsilons, strict=True):
        assert epsilon == pytest.approx(RDPAccountant().epsilon([(event, step)], 1e-5), rel=1e-6)


def test_the_decays_fall_as_far_as_the_planned_one(plan):
    planned = plan.release.noise.noise_multiplier(plan.steps - 1) / plan.noise_multiplier
    for curve in epsilon_curves(plan):
        expected = 1.0 if curve.name == "fixed" else planned
        first = curve.multipliers[0]
        assert curve.multipliers[-1] / first == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("ending", "begins"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_ending_chooses_the_format(plan, tmp_path, ending, begins):
    path = tmp_path / f"curves.{ending}"
    draw_curves(plan, path)
    assert path.read_bytes().startswith(begins)
