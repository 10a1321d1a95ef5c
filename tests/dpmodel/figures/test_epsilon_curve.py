import math
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.figures.epsilon_curve import LEAST_MARKS, MOST_MARKS, SLOW_MARKS, epsilon_over, first_releases
from dpmodel.figures.lines import draw_epsilon
from dpmodel.figures.style import Pen, make_panels
from monitors import (
    GaussianEvent,
    Ledger,
    PLDAccountant,
    PoissonSampledEvent,
    RDPAccountant,
    ViolationEvent,
    ZCDPAccountant,
)

DELTA = 1e-5


def drawn(curve):
    """The epsilon read off the drawn line at a step."""
    _, (axes,) = make_panels(1)
    draw_epsilon(axes, curve, Pen.of(0), "epsilon")
    (line,) = axes.get_lines()
    assert line.get_drawstyle() == "steps-pre"
    steps, epsilons = line.get_xdata(), line.get_ydata()
    return lambda step: epsilons[np.searchsorted(steps, step)]


rows = st.lists(
    st.tuples(st.floats(5.0, 200.0), st.integers(1, 120), st.booleans()),
    min_size=1,
    max_size=6,
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(rows, st.data())
def test_the_drawn_epsilon_is_never_below_the_ledger_and_only_slightly_above(rows, data):
    ledger = Ledger()
    for sigma, count, lost in rows:
        ledger.record(GaussianEvent(sigma), count, lost=lost)
    steps = ledger.kept.total
    if not steps:
        return
    ends = [*sorted(data.draw(st.sets(st.integers(1, steps), max_size=8))), steps]
    curve = epsilon_over(ledger, ends, DELTA, "zcdp")
    read, accountant = drawn(curve), ZCDPAccountant()
    jumps = np.diff([0.0, *(accountant.epsilon(first_releases(ledger, step), DELTA) for step in range(1, steps + 1))])
    exact = dict(enumerate(accumulate(jumps), start=1))
    for step in data.draw(st.sets(st.integers(1, steps - 1), max_size=20)) if steps > 1 else ():
        assert read(step) >= exact[step] * (1 - 1e-9)
        assert read(step) <= exact[step] + 0.03 * curve.epsilons[-1] + jumps.max()
        if step in curve.steps:
            assert read(step) == pytest.approx(exact[step], rel=1e-9)
    assert read(steps) == accountant.epsilon(ledger, DELTA)


def test_every_step_of_a_short_training_is_exact():
    event = PoissonSampledEvent(0.05, GaussianEvent(1.1))
    ledger = Ledger().record(event, 30)
    curve = epsilon_over(ledger, [10, 20, 30], DELTA, "rdp")
    assert curve.steps == tuple(range(31))
    for step in range(1, 31):
        assert curve.at([step])[0] == RDPAccountant().epsilon(ledger.head(step), DELTA)


def test_a_hundred_thousand_steps_need_few_computations_and_show_the_first_step():
    calls = []

    class Counting(RDPAccountant):
        def epsilon(self, ledger, delta):
            calls.append(ledger.total)
            return super().epsilon(ledger, delta)

    ledger = Ledger().record(PoissonSampledEvent(0.01, GaussianEvent(1.1)), 100_000)
    curve = epsilon_over(ledger, range(1000, 100_001, 1000), DELTA, Counting())
    assert len(calls) <= MOST_MARKS
    read = drawn(curve)
    for step in np.unique(np.geomspace(1, 100_000, 40).astype(int)):
        exact = RDPAccountant().epsilon(ledger.head(int(step)), DELTA)
        assert exact * (1 - 1e-9) <= read(step) <= exact + 0.02 * curve.epsilons[-1]
    assert read(1) == RDPAccountant().epsilon(ledger.head(1), DELTA)


@pytest.mark.slow
def test_a_ledger_of_many_rows_gets_fewer_points():
    ledger = Ledger()
    for step in range(20_000):
        ledger.record(GaussianEvent(500.0 - step / 100))
    curve = epsilon_over(ledger, [10_000, 20_000], DELTA, "zcdp")
    assert len(curve.steps) == LEAST_MARKS + 1
    assert {1, 10_000, 20_000} <= set(curve.steps)


@pytest.mark.slow
def test_the_tight_accountant_composes_once_per_point_and_only_the_last_at_full_precision(monkeypatch):
    asked = []

    def counting(accountant, ledger, delta, epsilon=PLDAccountant.epsilon):
        asked.append((accountant.precision, ledger.total))
        return epsilon(accountant, ledger, delta)

    ledger = Ledger().record(PoissonSampledEvent(0.01, GaussianEvent(1.1)), 2_000)
    with monkeypatch.context() as patch:
        patch.setattr(PLDAccountant, "epsilon", counting)
        curve = epsilon_over(ledger, range(100, 2001, 100), DELTA, "pld")
    assert len(asked) == len(curve.steps) - 1 <= SLOW_MARKS
    assert [total for precision, total in asked if precision == PLDAccountant().precision] == [2_000]
    assert curve.epsilons[-1] == PLDAccountant().epsilon(ledger, DELTA)


@pytest.mark.slow
def test_the_coarse_points_of_the_tight_accountant_are_bounds_and_close():
    ledger, precise = Ledger(), PLDAccountant(1e-4)
    for multiplier in (1.4, 1.1):
        ledger.record(PoissonSampledEvent(0.01, GaussianEvent(multiplier)), 100)
    curve = epsilon_over(ledger, [100, 200], DELTA, "pld")
    for step in curve.steps[1::4]:
        exact = precise.epsilon(ledger.head(step), DELTA)
        # The most precise bound is at most its own precision above the truth.
        assert exact * (1 - 1e-4) <= curve.at([step])[0] <= exact + 0.01 * curve.epsilons[-1]


def test_lost_steps_are_charged_where_they_were_lost():
    event = GaussianEvent(20.0)
    ledger = Ledger().record(event, 5).record(event, 3, lost=True).record(event, 5)
    curve = epsilon_over(ledger, [5, 10], DELTA, "zcdp")
    expected = [ZCDPAccountant().epsilon(Ledger().record(event, count), DELTA) for count in (5, 9, 13)]
    assert curve.at([5, 6, 10]).tolist() == pytest.approx(expected)


def test_a_statistic_that_is_not_a_step_is_charged_from_the_first_step_on():
    statistic, event = GaussianEvent(1.0), GaussianEvent(20.0)
    for ledger in (Ledger().record(statistic).record(event, 10), Ledger().record(event, 10).record(statistic)):
        curve = epsilon_over(ledger, [5, 10], DELTA, "zcdp", done=10)
        for step in (10, 5, 1):
            released = ledger.head(step) if ledger.rows[0][0] == event else ledger.head(step + 1)
            assert curve.at([step])[0] >= ZCDPAccountant().epsilon(released, DELTA)
        assert curve.epsilons[-1] == ZCDPAccountant().epsilon(ledger, DELTA)


@pytest.mark.parametrize("before", [0, 1, 500, 999, 1000])
def test_epsilon_is_infinite_from_the_step_of_a_violation_on(before):
    event = GaussianEvent(20.0)
    ledger = Ledger()
    if before:
        ledger.record(event, before)
    ledger.record(ViolationEvent("the weights were overwritten"))
    if before < 1000:
        ledger.record(event, 1000 - before)
    curve = epsilon_over(ledger, [500, 1000], DELTA, "zcdp", done=1000)
    infinite = [step for step, epsilon in zip(curve.steps, curve.epsilons, strict=True) if math.isinf(epsilon)]
    assert infinite[0] == max(before, 1)
    assert infinite[-1] == 1000
