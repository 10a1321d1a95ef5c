"""The joint cost of several runs on one data set: merging, tuning, filters, groups, and the published figures."""

import math

import numpy as np
import pytest
from scipy.special import ndtr

from monitors import (
    BudgetExceededError,
    BudgetGuard,
    DisjointEvent,
    GaussianEvent,
    Ledger,
    PLDAccountant,
    PoissonSampledEvent,
    PrivacyFilter,
    PrivacySpent,
    RandomStoppingEvent,
    RDPAccountant,
    UnsupportedEventError,
    best_of,
    best_of_random,
    describe_sampling,
    gaussian_delta,
    gaussian_epsilon,
    group_epsilon,
    group_privacy,
    privacy_spent,
    renyi_curve,
    replace_one_epsilon,
    training_event,
)
from monitors.published import SETTINGS, main, table

STEP = PoissonSampledEvent(0.01, GaussianEvent(1.0))


def training():
    return Ledger().record(GaussianEvent(8.0), 2).record(STEP, 300)


@pytest.mark.parametrize("accountant", [RDPAccountant(), PLDAccountant()], ids=lambda accountant: accountant.name)
def test_merging_runs_equals_the_best_of_them_with_all_charged(accountant):
    merged = training().merge(training(), training())
    assert accountant.epsilon(merged, 1e-5) == pytest.approx(accountant.epsilon(best_of(training(), 3), 1e-5), rel=1e-6)
    assert accountant.epsilon(merged, 1e-5) > accountant.epsilon(training(), 1e-5)


def test_merged_shuffled_runs_share_no_partition():
    one = Ledger().record(DisjointEvent(0, GaussianEvent(2.0)))
    two = Ledger().record(GaussianEvent(2.0), 2)
    assert RDPAccountant().epsilon(one.merge(one), 1e-5) == pytest.approx(RDPAccountant().epsilon(two, 1e-5))
    assert Ledger().extend(one).extend(one) == one.merge(one)
    assert RDPAccountant().epsilon(best_of(one, 2), 1e-5) == pytest.approx(RDPAccountant().epsilon(two, 1e-5))


@pytest.mark.parametrize("distribution", ["geometric", "logarithmic", "poisson"])
def test_random_stopping_costs_more_than_one_run_and_less_than_all(distribution):
    one, runs = training(), 30
    epsilon = RDPAccountant().epsilon(best_of_random(one, runs, distribution), 1e-5)
    assert RDPAccountant().epsilon(one, 1e-5) < epsilon < RDPAccountant().epsilon(best_of(one, runs), 1e-5)


@pytest.mark.sample(18)
@pytest.mark.parametrize(("distribution", "shape"), [("geometric", 1.0), ("logarithmic", 0.0), ("poisson", math.inf)])
@pytest.mark.parametrize("runs", [1.5, 50.0])
@pytest.mark.parametrize(("multiplier", "rate", "steps"), [(5.0, 1.0, 1), (1.0, 0.01, 500), (0.8, 0.02, 100)])
def test_random_stopping_agrees_with_an_independent_accountant(distribution, shape, runs, multiplier, rate, steps):
    from dp_accounting import dp_event, rdp

    one = Ledger().record(PoissonSampledEvent(rate, GaussianEvent(multiplier)), steps)
    step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(multiplier))
    orders = [*np.arange(1.1, 10, 0.1), *range(10, 60), *np.geomspace(60, 600, 30)]
    peer = rdp.RdpAccountant([float(order) for order in orders])
    peer.compose(dp_event.RepeatAndSelectDpEvent(dp_event.SelfComposedDpEvent(step, steps), runs, shape))
    # each accountant uses the best of its own orders
    ours = RDPAccountant().epsilon(best_of_random(one, runs, distribution), 1e-5)
    assert ours == pytest.approx(peer.get_epsilon(1e-5), rel=2e-3)


def test_the_geometric_bound_is_the_theorem_at_the_best_second_order():
    sigma, runs, order = 5.0, 10.0, 8.0
    found = renyi_curve(RandomStoppingEvent(GaussianEvent(sigma), runs), np.array([order]))[0]
    second = np.linspace(1.0001, 100, 200001)
    rdp = 1 / (2 * sigma**2)
    price = 2 * ((1 - 1 / second) * second * rdp + math.log(runs) / second)
    expected = order * rdp + price.min() + math.log(runs) / (order - 1)
    assert found == pytest.approx(expected, rel=1e-3)
    assert found >= expected * (1 - 1e-9)


def test_the_logarithmic_bound_has_the_stated_mean():
    from monitors.random_stopping import _logarithmic_parameter

    gamma = _logarithmic_parameter(10.0)
    assert (1 / gamma - 1) / math.log(1 / gamma) == pytest.approx(10.0, rel=1e-9)


def test_the_poisson_bound_is_the_theorem_and_not_below_it_at_the_exact_delta():
    orders = np.array([2.0, 4.0, 8.0, 16.0])
    ours = renyi_curve(RandomStoppingEvent(GaussianEvent(5.0), 10.0, "poisson"), orders)
    deltas = np.array([gaussian_delta(0.2, math.log1p(1 / (order - 1))) for order in orders])
    exact = orders / 50 + 10 * deltas + math.log(10) / (orders - 1)
    assert np.all(ours >= exact - 1e-12)
    assert np.all(ours <= exact + 0.5)


@pytest.mark.parametrize("runs", [0.01, 0.1, 0.5, 0.9, 1.0, 2.0, 20.0])
@pytest.mark.parametrize("shift", [0.1, 0.5, 2.0])
def test_the_poisson_bound_is_above_the_true_divergence_of_the_best_run(runs, shift):
    # a run's score is N(0, 1), or N(shift, 1) with the example; either way, no run happens with probability exp(-runs)
    scores, orders = np.linspace(-14.0, 14.0, 20001), np.array([1.1, 1.5, 2.0, 4.0, 16.0])
    with_one, without = (runs * np.exp(-runs * ndtr(c - scores) - (scores - c) ** 2 / 2) for c in (shift, 0.0))
    step = (scores[1] - scores[0]) / math.sqrt(2 * math.pi)
    both = (with_one > 0) & (without > 0)
    ratio = np.log(with_one[both]) - np.log(without[both])
    best = [step * np.sum(without[both] * np.exp(order * ratio)) for order in orders]
    truth = np.log(math.exp(-runs) + np.array(best)) / (orders - 1)
    bound = renyi_curve(RandomStoppingEvent(GaussianEvent(1 / shift), runs, "poisson"), orders)
    assert np.all(bound >= truth * (1 - 1e-6) - 1e-9)


def test_random_stopping_is_refused_by_the_loss_accountant_with_the_remedy():
    with pytest.raises(UnsupportedEventError, match=r"RandomStoppingEvent.*'rdp'"):
        PLDAccountant().epsilon(best_of_random(training(), 10), 1e-5)


def test_an_empty_ledger_cannot_be_repeated():
    with pytest.raises(ValueError, match="empty"):
        training_event(Ledger())


def test_tuning_is_stated_in_the_report():
    spent = privacy_spent(best_of(training(), 3), 1e-5)
    assert any("best of 3 runs" in note for note in spent.notes)


@pytest.mark.parametrize("order", [None, 12.0])
def test_a_filter_never_exceeds_its_guarantee(order):
    budget = PrivacyFilter(2.0, 1e-5, order=order)
    event = PoissonSampledEvent(0.05, GaussianEvent(1.3))
    while budget.allows(event):
        budget.charge(event)
    assert budget.ledger.total > 0
    assert RDPAccountant().epsilon(budget.ledger, 1e-5) <= 2.0
    with pytest.raises(BudgetExceededError, match="spent share"):
        budget.charge(event)
    assert budget.spent_share <= 1


def test_a_filter_with_a_plan_allows_nearly_the_whole_plan():
    plan = Ledger().record(STEP, 1000)
    epsilon = RDPAccountant().epsilon(plan, 1e-5)
    assert PrivacyFilter(epsilon * (1 + 1e-9), 1e-5, plan=plan).allows(STEP, 1000)
    assert not PrivacyFilter(epsilon * (1 + 1e-9), 1e-5, plan=plan).allows(STEP, 1010)


def test_a_filter_without_budget_is_refused():
    with pytest.raises(ValueError, match="no budget"):
        PrivacyFilter(0.1, 1e-5, order=1.5)
    with pytest.raises(ValueError, match="not both"):
        PrivacyFilter(0.1, 1e-5, order=1.5, plan=training())


class Run:
    """The part of a run that the guard uses."""

    def __init__(self, planned):
        self.ledger, self.step, self.planned_steps, self.reasons = Ledger(), 0, planned, []

    def event(self, step):
        # an adaptive schedule: less noise once something has been released
        return PoissonSampledEvent(0.05, GaussianEvent(2.5 if self.ledger.total < 20 else 1.2))

    def stop(self, reason):
        self.reasons.append(reason)


def test_the_guard_stops_an_adaptive_schedule_within_the_budget():
    budget, run = PrivacyFilter(2.0, 1e-5), Run(500)
    guard = BudgetGuard(budget)
    guard.on_train_begin(run)
    while not run.reasons and run.step < 500:
        guard.on_train_step_begin(run)
        if run.reasons:
            break
        run.ledger.record(run.event(run.step))
        run.step += 1
        guard.on_train_step_end(run)
    guard.on_train_end(run)
    assert 20 < run.step < 500
    assert budget.ledger == run.ledger
    assert RDPAccountant().epsilon(run.ledger, 1e-5) <= 2.0
    assert "privacy filter" in run.reasons[0]


def test_a_guard_refuses_a_used_filter():
    budget = PrivacyFilter(2.0, 1e-5)
    budget.charge(STEP)
    with pytest.raises(ValueError, match="unused"):
        BudgetGuard(budget)


def test_replacing_an_example_doubles_the_sensitivity_of_unsampled_releases():
    ledger = Ledger()
    for epoch in range(10):
        ledger.record(DisjointEvent(epoch, GaussianEvent(1.5)), 100)
    assert replace_one_epsilon(ledger, 1e-5) == pytest.approx(26.18, abs=5e-3)
    assert group_epsilon(ledger, 1e-5, 3) == gaussian_epsilon(3 * math.sqrt(10) / 1.5, 1e-5)


@pytest.mark.parametrize("size", [2, 5])
def test_under_sampling_a_group_follows_from_one_example(size):
    ledger = Ledger().record(STEP, 100)
    found = group_epsilon(ledger, 1e-5, size)
    assert found > RDPAccountant().epsilon(ledger, 1e-5)
    # the definition, checked at the underlying figure
    base = found / size
    delta = RDPAccountant().delta(ledger, base)
    assert group_privacy(base, delta, size)[1] <= 1e-5 * 1.01


def test_a_group_of_one_has_the_epsilon_of_one_example():
    assert group_epsilon(training(), 1e-5, 1) == RDPAccountant().epsilon(training(), 1e-5)
    assert group_privacy(0.0, 1e-6, 3) == pytest.approx((0.0, 3e-6))


def test_the_published_multipliers_are_reproduced_by_the_classic_conversion_to_two_digits():
    for (name, printed, asked, classic, improved, tight), setting in zip(table(), SETTINGS, strict=True):
        assert name == setting.name
        assert round(asked, 2) == printed
        assert classic == pytest.approx(3.0, abs=0.01)
        assert tight < improved < classic


def test_the_published_table_is_printed(capsys):
    main()
    assert "MNIST, ScatterNet + linear" in capsys.readouterr().out


def test_the_statement_of_what_was_spent_is_complete():
    spent = privacy_spent(training(), 1e-5, "pld", {"unit": "example"})
    assert spent.sampling == "Poisson, rate 0.01; none"
    assert spent.to_dict()["accountant"] == "pld"
    assert PrivacySpent(math.inf, 1e-5, "rdp").to_dict()["epsilon"] == "inf"
    assert describe_sampling(Ledger()) == "nothing was released"


@pytest.mark.parametrize("epsilon", [2.00004, 0.12341, 31.00001, 999.00001])
def test_no_printed_epsilon_is_below_the_spent_one(epsilon):
    printed = float(str(PrivacySpent(epsilon, 1e-5, "rdp")).split()[1])
    assert epsilon <= printed <= epsilon + 1e-4
