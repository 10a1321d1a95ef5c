import matplotlib.colors
import matplotlib.image
import pytest

from dpmodel.budget.curves import draw_curves, epsilon_curves
from dpmodel.config import make_config
from dpmodel.figures.files import DOTS_PER_INCH
from dpmodel.planning.training_plan import plan_training
from monitors import GaussianEvent, PoissonSampledEvent, RDPAccountant
from monitors.errors import ConfigError

BASE = {
    "network": "lenet5",
    "optimizer": "SGD",
    "privacy": {"target_epsilon": 2.0},
    "training": {"epochs": 1, "batch_size": 50},
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


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "begins"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_ending_chooses_the_format(plan, tmp_path, ending, begins):
    path = tmp_path / f"curves.{ending}"
    draw_curves(plan, path)
    assert path.read_bytes().startswith(begins)


@pytest.mark.parametrize(("style", "page"), [("light", "#ffffff"), ("dark", "#0d1117")])
@pytest.mark.slow
def test_style_and_size_are_those_that_are_asked_for(plan, tmp_path, style, page):
    figure = draw_curves(plan, tmp_path / "curves.png", style=style, size=3.4)
    assert figure.get_size_inches()[0] == 3.4
    pixels = matplotlib.image.imread(tmp_path / "curves.png")
    assert pixels.shape[1] == pytest.approx(3.4 * DOTS_PER_INCH, abs=1)
    assert matplotlib.colors.to_hex(pixels[0, 0]) == page


def test_a_figure_that_is_not_saved_is_returned(plan):
    assert [axes.get_ylabel() for axes in draw_curves(plan).axes] == ["epsilon at delta 1e-05", "noise multiplier"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "drak"}, "did you mean 'dark'"),
        ({"size": 340}, "width of the figure in inches, from 2.5 to 40, got 340"),
        ({"path": "epsilon.jpg"}, r"plot: figures are saved as \.png, \.svg, \.pdf, got 'epsilon.jpg'"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_computed(plan, monkeypatch, options, message):
    monkeypatch.setattr("dpmodel.budget.curves.epsilon_curves", lambda plan: pytest.fail("it was computed"))
    with pytest.raises(ConfigError, match=message):
        draw_curves(plan, **options)
