"""Meters accept what the ledger states, and notice what it does not."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from dpmodel.audit.draws import _mean_line as mean_line
from dpmodel.audit.draws import _spread_line as spread_line
from dpmodel.audit.draws import drawn_too_early, poisson_trials
from dpmodel.audit.lines import FAMILY_LEVEL, Line
from dpmodel.audit.meters import contribution_lines, correlation_p_value, noise_ratio
from dpmodel.audit.watch import stated_multiplier
from mechanisms.sampling import SAMPLERS
from monitors.errors import ConfigError
from monitors.events import ComposedEvent, GaussianEvent, LaplaceEvent, PoissonSampledEvent

STEPS, ROWS, BATCH = 60, 400, 40


def uniform(p_values):
    return stats.kstest(p_values, stats.uniform.cdf).pvalue > 1e-6


def test_p_values_of_the_noise_are_uniform():
    draw = np.random.default_rng(0)
    assert uniform([noise_ratio(draw.normal(size=500))[1] for _ in range(400)])


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_noise_that_is_five_percent_off_is_noticed(factor):
    assert noise_ratio(factor * np.random.default_rng(0).normal(size=20_000))[1] < 1e-9


def test_p_values_of_a_correlation_are_uniform():
    draw = np.random.default_rng(0)

    def one():
        a, b = draw.normal(size=(2, 30))
        return correlation_p_value(abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b), 30)

    assert uniform([one() for _ in range(400)])


def contributions(draw, in_drawn=1.0, in_others=0.0, canaries=60):
    """The lines of a training in which the canaries add that much to the steps that draw them and to the others."""
    included = np.arange(canaries) % 2 == 0
    drawn = draw.random((STEPS, ROWS)) < BATCH / ROWS
    signal = np.where(drawn[:, -canaries:], in_drawn, in_others) * included / np.sqrt(2)
    sums = 0.5 * draw.normal(size=(STEPS, 2, canaries)) + signal[:, None]
    return contribution_lines(
        SimpleNamespace(
            plan=SimpleNamespace(rows=ROWS, canaries=canaries),
            parts=[
                SimpleNamespace(sums=part, innovations=2.0 * part, sigma=np.full(len(part), 0.5), response=np.ones(1))
                for part in (sums[: STEPS // 2], sums[STEPS // 2 :])
            ],
            drawn=[np.flatnonzero(rows) for rows in drawn],
            included=included,
            share=1.0,
        )
    )


def test_p_values_of_the_contributions_are_uniform():
    draw = np.random.default_rng(0)
    for p_values in zip(*([line.p_value for line in contributions(draw)] for _ in range(400)), strict=True):
        assert uniform(p_values)


def test_contributions_are_those_of_drawn_and_of_other_steps():
    over, idle = contributions(np.random.default_rng(0), in_drawn=1.4, in_others=0.2, canaries=300)
    assert over.value == pytest.approx(1.4, abs=0.1)
    assert idle.value == pytest.approx(0.2, abs=0.1)
    assert max(over.p_value, idle.p_value) < 1e-9


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.4])
def test_batch_sizes_are_compared_with_the_rate(scale):
    sizes = np.random.default_rng(0).binomial(ROWS, scale * BATCH / ROWS, STEPS)
    found = mean_line(sizes, ROWS, BATCH / ROWS)
    assert (found.p_value > 1e-6) == (scale == 1.0)


def test_p_values_of_the_spread_are_uniform():
    draw = np.random.default_rng(0)
    sizes = draw.binomial(ROWS, 0.1, (400, STEPS))
    assert uniform([spread_line("spread", row, ROWS, 0.1).p_value for row in sizes])


def test_the_same_rows_in_each_step_are_noticed():
    rows = np.random.default_rng(0).random(ROWS) < 0.1
    assert spread_line("draws per row", rows * STEPS, STEPS, 0.1).p_value < 1e-9


@pytest.mark.parametrize("name", [name for name in SAMPLERS.names() if not name.startswith("test")])
@pytest.mark.parametrize("bands", [1, 4])
def test_correct_samplers_draw_no_row_too_early(name, bands):
    sampler = SAMPLERS.create(name, ROWS, BATCH)
    if bands > 1 and sampler.most_bands is None:
        bands = 1
    sampler.separate(bands)
    events = [sampler.amplify(step, GaussianEvent(1.0)) for step in range(STEPS)]
    drawn = [sampler.rows(step) for step in range(STEPS)]
    assert drawn_too_early(events, drawn) == 0
    trials = poisson_trials(events, drawn)
    if trials is not None:
        assert trials.rate == pytest.approx(bands * BATCH / ROWS)
        assert len(trials.rows) == STEPS // bands
    twice = [np.concatenate([rows, rows[:1]]) for rows in drawn]
    assert drawn_too_early(events, twice) >= STEPS
    if trials is None or bands > 1:
        assert drawn_too_early(events, [drawn[0]] * STEPS) > 0


def test_the_multiplier_is_that_of_the_sum():
    event = PoissonSampledEvent(0.1, ComposedEvent((GaussianEvent(1.5), GaussianEvent(20.0))))
    assert stated_multiplier(event) == 1.5
    with pytest.raises(ConfigError, match="LaplaceEvent"):
        stated_multiplier(PoissonSampledEvent(0.1, LaplaceEvent(1.0)))


def test_the_level_is_shared_among_the_lines():
    line = Line("noise", "x", 1.1, 1.0, "=", FAMILY_LEVEL / 10)
    assert line.contradicts(9)
    assert not line.contradicts(11)
