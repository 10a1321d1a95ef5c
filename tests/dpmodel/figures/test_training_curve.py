import math

import pytest

from dpmodel.history import History


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


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_picture_is_saved_in_the_format_of_its_ending(tmp_path, history, ending, magic):
    path = tmp_path / f"curves.{ending}"
    history.plot(path)
    assert path.read_bytes().startswith(magic)


def test_the_curves_are_the_columns_of_the_history(history):
    figure = history.plot()
    drawn = {line.get_label(): list(line.get_ydata()) for axes in figure.axes for line in axes.get_lines()}
    assert drawn == {
        "accuracy": history.column("accuracy"),
        "training loss (not private)": history.column("loss"),
        "epsilon": history.column("epsilon"),
        "noise multiplier": history.column("noise_multiplier"),
        "norm bound": history.column("norm_bound"),
    }


def test_panels_without_data_are_left_out():
    history = History()
    history.append(epoch=1, step=5, metrics={"accuracy": 0.5})
    figure = history.plot()
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["Validation metrics"]


def test_an_infinite_epsilon_is_no_obstacle():
    history = History()
    history.append(epoch=1, step=5, epsilon=math.inf)
    assert history.plot() is not None


def test_an_empty_history_and_an_unknown_ending_are_refused(tmp_path, history):
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
