"""Checks, registry, schedules, searches, and the cost of an import."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import monitors
from monitors import checks
from monitors.order_search import best_order
from monitors.registry import Registry
from monitors.root_search import crossing
from monitors.schedules import DECAYS, constant, decayed


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", True, None])
def test_positive_names_the_argument_and_its_value(value):
    with pytest.raises(ValueError, match="norm_bound must be a positive finite number"):
        checks.positive(norm_bound=value)


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (checks.non_negative, -1.0),
        (checks.open_unit, 1.0),
        (checks.unit_interval, 1.5),
        (checks.sampling_rate, 0.0),
        (checks.positive_int, 0),
        (checks.positive_int, 1.0),
        (checks.non_negative_int, -1),
    ],
)
def test_every_check_refuses_values_just_outside_its_range(check, wrong):
    with pytest.raises(ValueError, match=f"quantity must be .*{wrong!r}"):
        check(quantity=wrong)


def test_a_percentage_is_recognised():
    with pytest.raises(ValueError, match=r"did you mean 0\.9\?"):
        checks.unit_interval(target_unclipped_quantile=90)


def test_a_name_in_use_is_refused():
    registry = Registry("thing")
    registry.register("one")(dict)
    assert registry.register("one")(dict) is dict
    with pytest.raises(ValueError, match="already registered"):
        registry.register("one")(list)
    assert "one" in registry


@pytest.mark.parametrize(
    ("policy", "expected"), [("Time", 2 / 1.3), ("Step", 2 * 0.9**3), ("Exp", 2 * math.exp(-0.3)), (None, 2.0)]
)
def test_each_decay_is_its_formula_and_starts_at_the_initial_value(policy, expected):
    schedule = decayed(2.0, policy, 0.1)
    assert schedule(0) == 2.0
    assert schedule(3) == pytest.approx(expected)


@pytest.mark.parametrize("policy", DECAYS.names())
@pytest.mark.parametrize(("initial", "rate"), [(0.0, 0.1), (1.0, -0.1), (math.nan, 0.1)])
def test_a_decay_refuses_invalid_numbers(policy, initial, rate):
    with pytest.raises(ValueError, match=r"initial|rate"):
        decayed(initial, policy, rate)


def test_a_constant_is_constant():
    assert constant(3.0)(10**9) == 3.0


@given(st.floats(-6, 4).map(lambda power: 10.0**power), st.floats(1, 100))
@settings(max_examples=40, deadline=None)
def test_the_best_order_of_a_gaussian_curve_is_found(rho, log_inverse_delta):
    order, _ = best_order(lambda orders: rho * orders + log_inverse_delta / (orders - 1))
    best = rho + 2 * math.sqrt(rho * log_inverse_delta)
    assert rho * order + log_inverse_delta / (order - 1) <= best * (1 + 1e-5)


@given(st.floats(-8, 8), st.floats(0.2, 5), st.floats(-8, 8))
@settings(max_examples=60, deadline=None)
def test_a_crossing_is_found_from_above_in_few_evaluations(root, slope, start):
    places = []

    def height(place):
        places.append(place)
        return slope * (root - place) + 0.1 * math.sin(root - place)

    met, missed = crossing(
        height, start, low=-10, high=10, done=lambda good, bad: good.place - bad.place < 1e-6 or good.height > -1e-6
    )
    assert met.height <= 0
    assert met.place - root < 1e-4
    assert missed is not None
    assert len(places) < 40


def test_a_crossing_outside_of_the_range_is_reported():
    never, _ = crossing(lambda place: 1.0, 0.0, low=-1.0, high=1.0, done=lambda good, bad: True)
    assert never.height > 0
    always, missed = crossing(lambda place: -1.0, 0.0, low=-1.0, high=1.0, done=lambda good, bad: True)
    assert (always.place, missed) == (-1.0, None)


def test_every_public_name_exists_and_an_unknown_one_is_an_attribute_error():
    for name in monitors.__all__:
        assert getattr(monitors, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = monitors.nothing
    assert set(monitors.__all__) <= set(dir(monitors))


def test_planning_loads_neither_torch_nor_scipy():
    code = (
        "import sys; from monitors import *; "
        "m = PrivacyMonitorFactory.create('rdp', 60000, 256, 1.5, max_eps=3.0); m.max_steps(); "
        "print([name for name in ('torch', 'scipy', 'mechanisms', 'dpmodel') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=_root())
    assert out.stdout.strip() == "[]"


def _root():
    from pathlib import Path

    return Path(monitors.__file__).parents[1]


def test_an_empty_array_of_orders_is_refused():
    with pytest.raises(ValueError, match="orders"):
        monitors.RDPAccountant(np.array([]))
