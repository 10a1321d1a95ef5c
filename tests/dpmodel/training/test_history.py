import csv
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.training.history import MOST_NORM_BOUNDS, EpochRecord, History

finite = st.floats(allow_nan=False)
maybe = st.none() | finite
records = st.builds(
    EpochRecord,
    epoch=st.integers(1, 1000),
    step=st.just(7),
    loss=maybe,
    metrics=st.dictionaries(st.sampled_from(["accuracy", "f1", 'odd "name", with comma']), finite),
    epsilon=maybe,
    noise_multiplier=maybe,
    norm_bound=maybe,
    seconds=maybe,
)


@pytest.fixture
def history():
    history = History(delta=1e-5)
    history.append(epoch=1, step=10, loss=0.5, metrics={"accuracy": 0.8}, epsilon=0.7)
    history.append(epoch=2, step=20, loss=0.4, metrics={"accuracy": 0.9, "f1": 0.85}, epsilon=0.9)
    return history


def test_columns_hold_one_value_per_epoch_and_none_if_it_is_missing(history):
    assert history.column("accuracy") == [0.8, 0.9]
    assert history.column("f1") == [None, 0.85]
    assert history.column("norm_bound") == [None, None]
    assert history.columns[:5] == ("epoch", "step", "loss", "accuracy", "f1")


def test_an_unknown_column_is_refused_with_the_nearest(history):
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        history.column("acuracy")


def test_a_history_is_read_like_a_table_by_column_and_by_row(history):
    assert history["accuracy"] == history.column("accuracy")
    assert history[-1] is history.epochs[1]
    assert history[:1] == history.epochs[:1]
    assert len(history) == 2
    assert list(history) == history[:]


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("acuracy", ValueError, "did you mean 'accuracy'"),
        (2, IndexError, "the history has 2 epochs, counted from 0; there is none at 2"),
    ],
)
def test_a_column_or_row_that_is_not_there_is_named(history, key, error, message):
    with pytest.raises(error, match=message):
        history[key]


def test_steps_never_go_back(history):
    with pytest.raises(ValueError, match="step 5 is behind step 20"):
        history.append(epoch=3, step=5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epoch": 0, "step": 1}, "epoch must be an integer of at least 1"),
        ({"epoch": 1, "step": -1}, "step must be an integer of at least 0"),
        ({"epoch": 1, "step": 1, "metrics": {"loss": 0.1}}, "'loss' has the name of a history column"),
    ],
)
def test_wrong_records_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        History().append(**fields)


def test_append_takes_a_record_or_fields_but_not_both():
    with pytest.raises(ValueError, match="either one EpochRecord or its fields"):
        History().append(EpochRecord(1, 1), epoch=1)
    with pytest.raises(ValueError, match="either one EpochRecord or its fields"):
        History().append()


@settings(deadline=None)
@given(st.lists(records, max_size=5))
def test_csv_and_json_give_back_the_same_history(tmp_path_factory, rows):
    history = History(delta=1e-6)
    for row in rows:
        history.append(row)
    path = tmp_path_factory.mktemp("history") / "history.csv"
    history.to_csv(path)
    assert History.from_csv(path, delta=1e-6).epochs == history.epochs
    assert History.from_dict(json.loads(json.dumps(history.to_dict()))).epochs == history.epochs


def test_a_file_that_is_not_a_history_is_refused_by_name(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv, line 1: the file is not a training history"):
        History.from_csv(path)
    path.write_text("epoch,step\n1,ten\n")
    with pytest.raises(ValueError, match=r"other\.csv, line 2"):
        History.from_csv(path)


def test_changing_the_metrics_given_afterwards_changes_no_record():
    metrics = {"accuracy": 0.5}
    record = History().append(epoch=1, step=1, metrics=metrics)
    metrics["accuracy"] = 0.9
    assert record.metrics == {"accuracy": 0.5}


@given(st.lists(st.floats(0.1, 10.0), max_size=30))
def test_norm_bounds_are_kept_where_they_change_and_read_back(tmp_path_factory, bounds):
    history = History()
    for step, bound in enumerate(bounds):
        history.record_norm_bound(step, bound)
    assert all(before[1] != after[1] for before, after in pairwise(history.norm_bounds))
    held = dict(history.norm_bounds)
    for step, bound in enumerate(bounds):
        assert held[max(known for known in held if known <= step)] == bound
    path = tmp_path_factory.mktemp("bounds") / "norm_bounds.csv"
    history.norm_bounds_to_csv(path)
    read = History()
    read.read_norm_bounds(path)
    assert read.norm_bounds == history.norm_bounds
    assert History.from_dict(json.loads(json.dumps(history.to_dict()))).norm_bounds == history.norm_bounds


def test_a_bound_that_moves_very_often_takes_bounded_memory():
    history = History()
    for step in range(3 * MOST_NORM_BOUNDS):
        history.record_norm_bound(step, 1.0 + step)
    assert len(history.norm_bounds) <= MOST_NORM_BOUNDS
    assert history.norm_bounds[0] == (0, 1.0)
    assert history.norm_bounds[-1] == (3 * MOST_NORM_BOUNDS - 1, 3.0 * MOST_NORM_BOUNDS)
    assert all(bound == 1.0 + step for step, bound in history.norm_bounds)


def test_a_file_without_norm_bounds_is_refused_and_a_missing_file_is_accepted(tmp_path):
    history = History()
    history.read_norm_bounds(tmp_path / "nothing.csv")
    assert history.norm_bounds == []
    (tmp_path / "other.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv is not a list of norm bounds"):
        history.read_norm_bounds(tmp_path / "other.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch,step\n1\n", "line 2: the line does not have 2 cells"),
        ("epoch,step\n1,2,3\n", "line 2: the line does not have 2 cells"),
        ("epoch,step\n1,inf\n", "line 2: cannot convert float infinity"),
        ("epoch,step\n1,-1\n", "line 2: step must be an integer of at least 0"),
        ("epoch,step\n1,x\n", "line 2: could not convert"),
        ("epoch,step,step\n1,2,3\n", "line 1: the file is not a training history"),
        ("", "line 0: the file is not a training history"),
        ('epoch,step\n1,"2', "line 1: unexpected end of data"),
        ("epoch,step\n" + "1" * 200_000 + "\n", "line 1: field larger than field limit"),
    ],
)
def test_a_damaged_line_of_a_history_is_refused_with_its_number(tmp_path, text, message):
    (tmp_path / "history.csv").write_text(text)
    before = csv.field_size_limit(131_072)  # some libraries raise it
    try:
        with pytest.raises(ValueError, match=message):
            History.from_csv(tmp_path / "history.csv")
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("row", ["1,-1.0", "1,nan", "-1,1.0", "x,1.0", "1"])
def test_norm_bounds_are_positive(tmp_path, row):
    (tmp_path / "norm_bounds.csv").write_text(f"step,norm_bound\n{row}\n")
    with pytest.raises(ValueError, match="is not a list of norm bounds"):
        History().read_norm_bounds(tmp_path / "norm_bounds.csv")
