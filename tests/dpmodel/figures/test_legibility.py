import io
import math
from itertools import combinations

import pytest
from matplotlib.text import Text

from dpmodel.compare.statistics import paired_difference, summarise
from dpmodel.figures.curve import Curve
from dpmodel.figures.epsilon_curve import Privacy
from dpmodel.figures.gallery import draw_all
from dpmodel.figures.spread import SpreadRow, spread_over_seeds
from dpmodel.figures.style import BACKGROUND, ROLES, repaint
from dpmodel.training.history import History

NAMES = ("fixed", "Exp strong", "adaptive quantile clipping with a long name", "d", "e")
SIZES = (None, 2.5)
CASES = ("usual", "one point", "infinite", "infinite later", "no validation")


def a_history(case, seed=0):
    made = History(1e-5)
    for epoch in range(1, 2 if case == "one point" else 6):
        metrics = {"accuracy": 1 - 0.1 / epoch - 0.01 * seed, "f1": 0.5, "auroc": 0.99, "valid_loss": 1.0 / epoch}
        infinite = case == "infinite" or (case == "infinite later" and epoch > 2)
        made.append(
            epoch=epoch,
            step=1234 * epoch,
            loss=1.2 / epoch,
            metrics={} if case == "no validation" else metrics,
            epsilon=math.inf if infinite else math.sqrt(epoch),
            noise_multiplier=1.1 / epoch,
            norm_bound=0.1 * epoch,
        )
    return made


def a_curve(name, case):
    histories = (a_history(case), a_history(case, 1))
    steps = tuple(histories[0].column("step"))
    privacy = Privacy((0, 1, *steps), (0.0, 0.9, *histories[0].column("epsilon")), 1e-5, "rdp")
    return Curve(name, histories, (0, steps[-1] - 1), (2.0, 1.0), privacy, 1.0)


def a_spread(size):
    base = {1: 0.99, 2: 1.0, 3: 1.0}
    others = {name: {seed: value - 0.001 * place for seed, value in base.items()} for place, name in enumerate(NAMES)}
    rows = [
        SpreadRow(name, values, summarise(list(values.values()), (0, 1)), paired_difference(values, base, (0, 1)))
        for name, values in others.items()
    ]
    return spread_over_seeds(rows, "accuracy", "fixed noise and bound", size)


def shown(figure):
    """Every text of a figure with its position in pixels."""
    figure.draw_without_rendering()
    outside = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        room = 1e-9 * (high - low)
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        outside |= {tick.label1 for tick in ticks if not low - room <= tick.get_loc() <= high + room}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text not in outside]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text().strip()]


def require_legible(figure):
    texts = shown(figure)
    assert texts
    for text, box in texts:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        assert inside, f"{text!r} leaves the picture"
    for (one, here), (other, there) in combinations(texts, 2):
        wide = min(here.x1, there.x1) - max(here.x0, there.x0)
        tall = min(here.y1, there.y1) - max(here.y0, there.y0)
        assert min(wide, tall) < 1, f"{one!r} and {other!r} overlap"


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_texts_of_a_figure_do_not_overlap_or_leave_the_figure(case, size):
    metric = None if case == "no validation" else "accuracy"
    for count in (1, len(NAMES)):
        for figure in draw_all([a_curve(name, case) for name in NAMES[:count]], metric, size).values():
            require_legible(figure)
    require_legible(a_history(case).plot(size=size))


@pytest.mark.parametrize("size", [*SIZES, 3.4, 7.0])
def test_texts_of_the_spread_over_seeds_do_not_overlap(size):
    require_legible(a_spread(size))


def test_a_dark_figure_has_no_colour_of_a_light_one():
    figures = [
        a_spread(None),
        a_history("usual").plot(),
        *draw_all([a_curve(name, "usual") for name in "ab"]).values(),
    ]
    light = {colours[0] for colours in (*ROLES.values(), BACKGROUND)}
    dark = {colours[1] for colours in (*ROLES.values(), BACKGROUND)}
    for figure in figures:
        repaint(figure, "dark")
        svg = as_svg(figure)
        assert {colour for colour in light if colour in svg} == set()
        assert {colour for colour in dark if colour in svg} >= {"#0d1117", "#e6edf3", "#343b44"}


def as_svg(figure):
    picture = io.StringIO()
    figure.savefig(picture, format="svg", facecolor=figure.get_facecolor())
    return picture.getvalue().lower()
