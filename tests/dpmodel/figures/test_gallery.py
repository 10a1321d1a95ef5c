import numpy as np
import pytest

from dpmodel.compare.statistics import paired_difference, summarise
from dpmodel.figures.curve import Curve
from dpmodel.figures.epsilon_curve import MOST_MARKS, Privacy, epsilon_over, first_releases
from dpmodel.figures.gallery import FIGURES, draw_all, inline_svg
from dpmodel.figures.spread import SpreadRow, spread_over_seeds
from dpmodel.figures.style import SERIES, Pen
from dpmodel.training.history import History
from monitors import GaussianEvent, Ledger, ZCDPAccountant


def history(values, bound=1.0):
    made = History(1e-5)
    for epoch, value in enumerate(values, start=1):
        made.append(epoch=epoch, step=10 * epoch, metrics={"accuracy": value}, norm_bound=bound)
    return made


def curve(name, *rows):
    privacy = Privacy((0, 10, 20), (0.0, 1.0, 1.5), 1e-5, "rdp")
    return Curve(name, tuple(history(row) for row in rows), (0, 19), (2.0, 1.0), privacy, 1.0)


def test_every_figure_has_a_line_per_curve():
    curves = [curve("a", [0.1, 0.2], [0.3, 0.4]), curve("b", [0.5, 0.6])]
    for figure in draw_all(curves).values():
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
        for axes in figure.axes:
            assert len(axes.get_lines()) == 2


def test_the_metric_is_drawn_at_the_epsilon_spent_by_then():
    figure = FIGURES["metric_against_epsilon"]([curve("a", [0.1, 0.2], [0.3, 0.6])], "accuracy")
    (line,) = figure.axes[0].get_lines()
    assert list(line.get_xdata()) == [1.0, 1.5]
    assert list(line.get_ydata()) == pytest.approx([0.2, 0.4])
    (band,) = figure.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.1, 0.6))


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="at least one training"):
        draw_all([])


def test_epsilon_is_that_of_the_first_releases_and_needs_few_points():
    ledger = Ledger().record(GaussianEvent(20.0), 60).record(GaussianEvent(10.0), 40)
    privacy = epsilon_over(ledger, list(range(1, 101)), 1e-5, "zcdp")
    assert len(privacy.steps) <= MOST_MARKS + 1
    assert privacy.steps[-1] == 100
    for step, epsilon in zip(privacy.steps[1:], privacy.epsilons[1:], strict=True):
        assert epsilon == ZCDPAccountant().epsilon(first_releases(ledger, step), 1e-5)
    assert first_releases(ledger, 70).rows == ((GaussianEvent(20.0), 60), (GaussianEvent(10.0), 10))


def test_pens_of_a_dozen_curves_differ():
    assert len({(pen.colour, str(pen.dashes)) for pen in map(Pen.of, range(2 * len(SERIES)))}) == 2 * len(SERIES)


def test_the_spread_shows_every_seed_and_the_difference_of_all_but_the_baseline():
    base, other = {1: 0.9, 2: 0.92}, {1: 0.91, 2: 0.94}
    rows = [
        SpreadRow("fixed", base, summarise(list(base.values())), None),
        SpreadRow("new", other, summarise(list(other.values())), paired_difference(other, base)),
    ]
    values, differences = spread_over_seeds(rows, "accuracy", "fixed").axes
    assert sum(len(dots.get_offsets()) for dots in values.collections) == 4
    assert len(differences.get_lines()) == 1 + 2
    assert [label.get_text() for label in values.get_yticklabels()] == ["fixed", "new"]


def test_an_inline_figure_has_unique_ids_and_a_description():
    figure = FIGURES["epsilon_against_step"]([curve("a <b> & c", [0.1]), curve("d", [0.1])], "accuracy")
    svg = inline_svg(figure, "mine", 'with "quotes" & <marks>')
    assert svg.startswith("<svg viewBox=")
    assert 'aria-label="with &quot;quotes&quot; &amp; &lt;marks&gt;"' in svg
    assert "a &lt;b&gt; &amp; c" in svg
    assert svg.count('id="') == svg.count('id="mine-')
    assert np.all([mark not in svg for mark in ("http", "<style", "<metadata", "xlink")])
