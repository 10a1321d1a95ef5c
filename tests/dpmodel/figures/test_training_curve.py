import math

import numpy as np
import pytest

from dpmodel.training.history import History
from monitors import GaussianEvent, Ledger, ViolationEvent, ZCDPAccountant


@pytest.fixture
def history():
    history = History(delta=1e-5)
    for epoch in range(1, 4):
        history.append(
            epoch=epoch,
            step=100 * epoch,
            loss=1 / epoch,
            metrics={"accuracy": 1 - 0.1 / epoch},
            epsilon=0.5 * epoch,
            noise_multiplier=1.1,
            norm_bound=0.1,
        )
    return history


@pytest.mark.sample(3)
@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_figure_is_saved_in_the_format_of_its_extension(tmp_path, history, ending, magic):
    path = tmp_path / f"curves.{ending}"
    history.plot(path)
    assert path.read_bytes().startswith(magic)


def test_the_curves_are_the_columns_of_the_history(history):
    figure = history.plot()
    drawn = {line.get_label(): list(line.get_ydata()) for axes in figure.axes for line in axes.get_lines()}
    assert drawn == {
        "accuracy": history.column("accuracy"),
        "training loss (not private)": history.column("loss"),
        "epsilon": [0.0, *history.column("epsilon")],
        "noise multiplier": history.column("noise_multiplier"),
        "norm bound": history.column("norm_bound"),
    }
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)


def test_no_two_axes_share_a_panel(history):
    places = [axes.get_position().bounds for axes in history.plot().axes]
    assert len(set(places)) == len(places) == 5


def test_epsilon_is_drawn_after_each_step_of_the_ledger(history):
    ledger = Ledger().record(GaussianEvent(30.0), 300)
    (line,) = history.plot(ledger=ledger, accountant="zcdp").axes[2].get_lines()
    for step in (1, 2, 17, 99, 150, 300):
        place = np.searchsorted(line.get_xdata(), step)
        exact = ZCDPAccountant().epsilon(ledger.head(step), 1e-5)
        assert exact <= line.get_ydata()[place] * (1 + 1e-12)
        assert line.get_ydata()[place] <= exact + 0.02 * line.get_ydata()[-1]


def test_without_a_ledger_an_epoch_is_as_high_as_its_end(history):
    (line,) = history.plot().axes[2].get_lines()
    assert line.get_drawstyle() == "steps-pre"
    assert list(line.get_xdata()) == [0, 100, 200, 300]


def test_the_headline_has_the_epsilon_of_the_ledger(history):
    ledger = Ledger().record(GaussianEvent(30.0), 300).record(ViolationEvent("the weights were overwritten"))
    assert "epsilon infinite" in history.plot(ledger=ledger).get_suptitle()


def test_a_ledger_needs_a_delta():
    history = History()
    history.append(epoch=1, step=5)
    with pytest.raises(ValueError, match="has none"):
        history.plot(ledger=Ledger())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "drak"}, "did you mean 'dark'"),
        ({"size": 2}, "from 2.5 to 40, got 2"),
        ({"size": float("nan")}, "size must be a positive finite number"),
        ({"size": "page"}, "size must be a positive finite number"),
    ],
)
def test_an_unknown_style_or_size_is_refused(history, options, message):
    with pytest.raises(ValueError, match=message):
        history.plot(**options)


def test_panels_without_data_are_left_out():
    history = History()
    history.append(epoch=1, step=5, metrics={"accuracy": 0.5})
    figure = history.plot()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Validation accuracy"]


def test_an_infinite_epsilon_is_drawn():
    history = History()
    history.append(epoch=1, step=5, epsilon=math.inf)
    assert history.plot() is not None


def test_an_empty_history_and_an_unknown_extension_are_refused(tmp_path, history):
    with pytest.raises(ValueError, match="the history is empty"):
        History().plot()
    with pytest.raises(ValueError, match=r"\.png, \.svg, \.pdf"):
        history.plot(tmp_path / "curves.jpeg2")
    assert not list(tmp_path.iterdir())


def test_plotting_leaves_the_users_pyplot_alone(history):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    history.plot()
    assert plt.get_fignums() == before
