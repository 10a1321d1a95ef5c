"""The Renyi curve against independent multiple-precision values."""

import json
import math
from pathlib import Path

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import rdp_sampled_gaussian

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "renyi_sampled_gaussian.json").read_text())["rows"]

rates = st.floats(-7, -1e-6).map(lambda power: 10.0**power)
sigmas = st.floats(math.log10(0.05), 2).map(lambda power: 10.0**power)
orders = st.floats(-4, 4).map(lambda power: min(1 + 10.0**power, 1e4))


def binomial_truth(rate, sigma, order):
    """The finite sum for integer orders (Mironov, Talwar and Zhang 2019, section 3.3): A - 1 with 40 digits."""
    with mp.workdps(40 + int(0.5 * order * math.log10(1 / rate) + 5)):
        q, s = mp.mpf(rate), mp.mpf(sigma)
        total = sum(
            mp.binomial(order, k) * (1 - q) ** (order - k) * q**k * mp.expm1((k * k - k) / (2 * s * s))
            for k in range(2, order + 1)
        )
        return float(mp.log1p(total) / (order - 1))


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row['rate']:.3g}-{row['sigma']}-{row['order']}")
def test_hard_corners_agree_with_40_digit_quadrature_to_nine_digits(row):
    value = rdp_sampled_gaussian(row["rate"], row["sigma"], row["order"])[0]
    assert value == pytest.approx(float(row["renyi"]), rel=1e-9)


@given(rates, sigmas, st.integers(2, 40))
@settings(max_examples=40, deadline=None)
def test_integer_orders_agree_with_the_binomial_sum(rate, sigma, order):
    assert rdp_sampled_gaussian(rate, sigma, order)[0] == pytest.approx(binomial_truth(rate, sigma, order), rel=1e-9)


@given(rates, sigmas, orders)
@settings(max_examples=100, deadline=None)
def test_a_curve_is_positive_finite_and_never_above_the_unsampled_one(rate, sigma, order):
    value = rdp_sampled_gaussian(rate, sigma, order)[0]
    assert 0 < value <= order / (2 * sigma**2) * (1 + 1e-9)


@given(rates, sigmas, orders)
@settings(max_examples=60, deadline=None)
def test_a_curve_rises_with_the_order_and_the_rate_and_falls_with_the_noise(rate, sigma, order):
    value = rdp_sampled_gaussian(rate, sigma, order)[0]
    slack = value * (1 + 2e-9)
    assert rdp_sampled_gaussian(rate, sigma, order * 1.01)[0] * (1 + 2e-9) >= value
    assert rdp_sampled_gaussian(rate, sigma * 1.01, order)[0] <= slack
    assert rdp_sampled_gaussian(rate * 0.99, sigma, order)[0] <= slack


@given(
    st.floats(1e-300, 1.0, exclude_min=True),
    st.floats(-12, 12).map(lambda power: 10.0**power),
    st.floats(-9, 5).map(lambda power: 1 + 10.0**power),
)
@settings(max_examples=60, deadline=None)
def test_extreme_values_never_overflow_or_turn_negative(rate, sigma, order):
    value = rdp_sampled_gaussian(rate, sigma, order)[0]
    assert np.isfinite(value)
    assert value >= 0


@pytest.mark.parametrize(("order", "value"), [(1.5, 1.27253743e-4), (8.3, 9.89287356e-4)])
def test_the_known_values_at_rate_one_hundredth_and_multiplier_one(order, value):
    assert rdp_sampled_gaussian(0.01, 1.0, order)[0] == pytest.approx(value, rel=1e-8)


def test_an_array_of_multipliers_gives_one_row_each():
    table = rdp_sampled_gaussian(0.01, [0.5, 1.0, 2.0], [2.0, 8.3])
    assert table.shape == (3, 2)
    np.testing.assert_allclose(table[1], rdp_sampled_gaussian(0.01, 1.0, [2.0, 8.3]), rtol=1e-12)


def test_without_sampling_the_curve_is_the_closed_form():
    np.testing.assert_allclose(rdp_sampled_gaussian(1.0, 2.0, [1.5, 9.0]), [1.5 / 8, 9 / 8], rtol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, 2.0), "sampling_rate"),
        ((1.5, 1.0, 2.0), "sampling_rate"),
        ((0.1, 0.0, 2.0), "noise_multiplier"),
        ((0.1, math.nan, 2.0), "noise_multiplier"),
        ((0.1, [1.0, -2.0], 2.0), "-2.0"),
        ((0.1, 1.0, 1.0), "orders"),
        ((0.1, 1.0, [2.0, 0.5]), "0.5"),
        ((0.1, 1.0, math.inf), "orders"),
        ((0.1, 1.0, []), "orders"),
    ],
)
def test_invalid_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        rdp_sampled_gaussian(*arguments)
