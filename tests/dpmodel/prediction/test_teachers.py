"""Teachers: one row changes one of them, and an interruption changes none."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from dpmodel.config import make_config
from dpmodel.prediction import ConvexHead, EnsembleLogits, QueryLedger, load_teachers, train_teachers
from dpmodel.prediction.teachers import _KEPT, ConstantVote, TeacherJob
from dpmodel.prediction.teachers_folder import Ensemble, TeachersFolder
from monitors.errors import CheckpointError, ConfigError, DataError

ROOT = Path(__file__).parents[3]
VALUES = {
    "data": {"name": "synthetic", "num_train": 120, "num_test": 40, "num_classes": 3, "shape": [1, 4, 4]},
    "network": {"name": "linear"},
    "optimizer": {"name": "Momentum", "lr": 0.3},
    "privacy": {"noise_multiplier": 1.0},
    "training": {"epochs": 3, "batch_size": 8},
}
PARTS = 6


def configuration(**changes):
    return make_config({**VALUES, **changes})


def weights(teachers):
    return [list(network.state_dict().values()) for network in teachers.networks]


def same(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


def npz(path, x, y):
    x_test, y_test = np.zeros((3, 4), np.float32), np.array([0, 1, 2])
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return {"name": "npz", "root": str(path), "num_classes": 3}


def test_the_teachers_fit_an_ensemble_that_checks_their_rows(tmp_path):
    run = train_teachers(configuration(), tmp_path / "t", PARTS, jobs=1)
    assert (run.ok, run.reused, run.parts) == (True, 0, PARTS)
    networks, rows = load_teachers(tmp_path / "t")
    assert sorted(np.concatenate(rows).tolist()) == list(range(120))
    with QueryLedger(tmp_path / "q", 100.0, 1e-5) as ledger:
        ensemble = EnsembleLogits(networks, rows=rows, noise_multiplier=1.0, ledger=ledger)
        assert ensemble.predict(torch.zeros(2, 1, 4, 4)).shape == (2,)
        assert not ledger.ledger.notes


@pytest.mark.parametrize(
    "network",
    [
        {"name": "mlp", "hidden": [4]},
        {"module": "torch.nn:Linear", "in_features": 4, "out_features": 3},
        {"module": "dpmodel.prediction:ConvexHead", "features": 4, "classes": 3, "regularization": 1.0},
    ],
)
def test_another_row_changes_one_teacher_only(network, tmp_path):
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(91, 4)).astype(np.float32), generator.integers(0, 3, 91)
    found = []
    for count in (90, 91):
        data = npz(tmp_path / f"{count}.npz", x[:count], y[:count])
        config = configuration(data=data, network=network)
        train_teachers(config, tmp_path / str(count), PARTS, jobs=1, seed=5)
        found.append(load_teachers(tmp_path / str(count)))
    changed = [part for part in range(PARTS) if not same(weights(found[0])[part], weights(found[1])[part])]
    assert changed == [part for part in range(PARTS) if 90 in found[1].rows[part]]
    assert len(changed) == 1


def test_an_interrupted_command_goes_on_where_it_stopped(tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    train_teachers(configuration(), whole, PARTS, jobs=1, seed=5)
    train, begun = TeacherJob.train, []

    def interrupted(job, *args):
        begun.append(job.number)
        if len(begun) == 3:
            return train(job, lambda number, step: None, lambda: "SIGTERM")
        return train(job, *args)

    monkeypatch.setattr(TeacherJob, "train", interrupted)
    run = train_teachers(configuration(), tmp_path / "t", PARTS, jobs=1, seed=5)
    assert (run.interrupted, run.ok, run.missing) == (True, False, 4)
    with pytest.raises(ConfigError, match=r"4 of 6 teachers in .* are not trained"):
        load_teachers(tmp_path / "t")
    monkeypatch.undo()
    again = train_teachers(configuration(), tmp_path / "t", PARTS, jobs=1)
    assert (again.ok, again.reused) == (True, 2)
    assert all(map(same, weights(load_teachers(tmp_path / "t")), weights(load_teachers(whole))))
    assert train_teachers(configuration(), tmp_path / "t", PARTS, jobs=1).reused == PARTS


def test_a_failed_teacher_is_reported_and_trained_when_the_call_is_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(Ensemble, "save_teacher", lambda *args: (_ for _ in ()).throw(OSError("no disk")))
    run = train_teachers(configuration(), tmp_path / "t", PARTS, jobs=1)
    assert [outcome.fault for outcome in run.faults] == ["OSError: no disk"] * PARTS
    monkeypatch.undo()
    assert train_teachers(configuration(), tmp_path / "t", PARTS, jobs=1).ok


def test_all_files_are_private(tmp_path):
    train_teachers(configuration(), tmp_path / "t", PARTS, jobs=1)
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o700
    files = sorted((tmp_path / "t").iterdir())
    assert len(files) == PARTS + 1
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_parts_are_drawn_anew_for_each_folder(tmp_path):
    rows = []
    for name in "ab":
        train_teachers(configuration(), tmp_path / name, PARTS, jobs=1)
        rows.append(load_teachers(tmp_path / name).rows)
    assert any(first.tolist() != second.tolist() for first, second in zip(*rows, strict=True))


def test_parts_without_rows_or_with_one_class_vote_for_a_constant(tmp_path):
    y = np.repeat([0, 1, 2], [2, 2, 26])
    data = npz(tmp_path / "d.npz", np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32), y)
    run = train_teachers(configuration(data=data), tmp_path / "t", 30, jobs=1, seed=5)
    assert run.ok
    networks, rows = load_teachers(tmp_path / "t")
    assert any(len(part) == 0 for part in rows)
    for part, (network, members) in enumerate(zip(networks, rows, strict=True)):
        present = set(y[members].tolist())
        assert isinstance(network, ConstantVote) == (len(present) < 2)
        if isinstance(network, ConstantVote):
            expected = present.pop() if present else part % 3
            assert network(torch.zeros(2, 4)).argmax(1).tolist() == [expected] * 2


def test_a_convex_head_without_an_optimum_votes_for_the_class_with_most_rows(tmp_path, monkeypatch):
    def fails(self, x, y):
        raise ArithmeticError("the optimum was not reached")

    monkeypatch.setattr(ConvexHead, "fit", fails)
    data = npz(tmp_path / "d.npz", np.ones((20, 4), np.float32), np.repeat([0, 1], [4, 16]))
    network = {"module": "dpmodel.prediction:ConvexHead", "features": 4, "classes": 3, "regularization": 1.0}
    assert train_teachers(configuration(data=data, network=network), tmp_path / "t", 2, jobs=1, seed=5).ok
    assert all(isinstance(each, ConstantVote) for each in load_teachers(tmp_path / "t").networks)


def test_layers_that_mix_examples_and_schedules_may_be_used(tmp_path):
    network = {"module": f"{__name__}:Normalised"}
    schedule = {"name": "OneCycleLR", "max_lr": 0.3}
    config = configuration(network=network, optimizer={**VALUES["optimizer"], "schedule": schedule})
    assert train_teachers(config, tmp_path / "t", 3, jobs=1).ok
    trained = load_teachers(tmp_path / "t").networks[0]
    assert not trained.training
    assert trained[1].running_mean.abs().sum() > 0


class Normalised(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("changes", "parts", "message"),
    [
        ({}, 1, "parts must be at least 2 and at most the number of training examples, 120, got 1"),
        ({}, 121, "got 121"),
        (
            {"normalise": {"name": "private", "noise_multiplier": 1.0, "norm_bound": 1.0, "square_bound": 1.0}},
            2,
            "normalise releases statistics of all rows",
        ),
        ({"network": {"name": "lenet"}}, 2, "unknown network 'lenet'"),
        ({"network": {"module": "torch.nn:Flatten"}, "data": {**VALUES["data"], "shape": [1, 1, 1]}}, 2, "network: "),
    ],
)
def test_bad_input_is_refused_and_leaves_no_folder(changes, parts, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train_teachers(configuration(**changes), tmp_path / "t", parts, jobs=1)
    assert not (tmp_path / "t").exists()


def test_rows_that_occur_again_are_refused_since_they_would_reach_several_teachers(tmp_path):
    x, y = np.random.default_rng(0).random((40, 4), np.float32), np.arange(40) % 3
    config = configuration(data=npz(tmp_path / "d.npz", np.tile(x, (5, 1)), np.tile(y, 5)))
    with pytest.raises(DataError, match="more than once"):
        train_teachers(config, tmp_path / "t", PARTS, jobs=1)
    assert not (tmp_path / "t").exists()


def test_numbers_to_predict_are_refused(tmp_path):
    x = np.zeros((8, 4), np.float32)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=x[:, :1], x_test=x, y_test=x[:, :1])
    config = configuration(
        data={"name": "npz", "root": str(tmp_path / "d.npz")},
        network={"module": "torch.nn:Linear", "in_features": 4, "out_features": 1},
        training={**VALUES["training"], "metrics": ["loss"]},
    )
    with pytest.raises(DataError, match="teachers vote for classes"):
        train_teachers(config, tmp_path / "t", 2, jobs=1)


def test_a_folder_of_other_teachers_is_refused(tmp_path):
    train_teachers(configuration(), tmp_path / "t", PARTS, jobs=1)
    longer = configuration(training={**VALUES["training"], "epochs": 4})
    with pytest.raises(ConfigError, match=r"another configuration: training\.epochs is 4 here and 3 there"):
        train_teachers(longer, tmp_path / "t", PARTS, jobs=1)
    with pytest.raises(ConfigError, match="parts is 7 here and 6 there"):
        train_teachers(configuration(), tmp_path / "t", 7, jobs=1)
    quieter = configuration(privacy={"noise_multiplier": 2.0}, performance={"threads": 1})
    assert train_teachers(quieter, tmp_path / "t", PARTS, jobs=1).reused == PARTS


def test_a_folder_of_other_data_is_refused(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    for labels in ([0, 1, 2], [1, 0, 2]):
        data = npz(tmp_path / "d.npz", x, np.tile(labels, 10))
        if labels[0] == 0:
            train_teachers(configuration(data=data), tmp_path / "t", 2, jobs=1)
    with pytest.raises(ConfigError, match="other training data"):
        train_teachers(configuration(data=data), tmp_path / "t", 2, jobs=1)


def test_rows_in_another_order_are_other_data_although_only_features_are_trained_on(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    features = {"name": "network", "network": "linear", "num_classes": 6}
    for order in (np.arange(30), np.arange(30)[::-1]):
        data = npz(tmp_path / "d.npz", x[order], np.zeros(30, np.int64))
        if order[0] == 0:
            train_teachers(configuration(data=data, features=features), tmp_path / "t", 2, jobs=1)
    with pytest.raises(ConfigError, match="other training data"):
        train_teachers(configuration(data=data, features=features), tmp_path / "t", 2, jobs=1)


def test_data_that_change_from_one_reading_to_the_next_are_refused(tmp_path, monkeypatch):
    x, train, begun = np.arange(120.0, dtype=np.float32).reshape(30, 4), TeacherJob.train, []
    data = npz(tmp_path / "d.npz", x, np.tile([0, 1, 2], 10))

    def in_another_process(job, *args):
        begun.append(job.number)
        if len(begun) == 3:
            npz(tmp_path / "d.npz", np.roll(x, 3, axis=0), np.tile([0, 1, 2], 10))
            _KEPT.clear()
        return train(job, *args)

    monkeypatch.setattr(TeacherJob, "train", in_another_process)
    run = train_teachers(configuration(data=data), tmp_path / "t", 4, jobs=1)
    assert run.missing == 2
    assert all("so teachers would share rows" in outcome.fault for outcome in run.faults)


def test_a_folder_of_other_files_is_refused_and_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="so it is not a folder of teachers"):
        train_teachers(configuration(), tmp_path, PARTS, jobs=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="holds no teachers"):
        load_teachers(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        load_teachers(tmp_path / "nowhere")


def test_teachers_of_another_partition_are_trained_again_and_never_loaded(tmp_path):
    for name in "ab":
        train_teachers(configuration(), tmp_path / name, PARTS, jobs=1)
    place = TeachersFolder(tmp_path / "a").teacher(2)
    place.write_bytes(TeachersFolder(tmp_path / "b").teacher(2).read_bytes())
    with pytest.raises(ConfigError, match="1 of 6 teachers"):
        load_teachers(tmp_path / "a")
    run = train_teachers(configuration(), tmp_path / "a", PARTS, jobs=1)
    assert (run.ok, run.reused) == (True, PARTS - 1)


def test_a_damaged_teacher_is_named(tmp_path):
    train_teachers(configuration(), tmp_path / "t", PARTS, jobs=1)
    file = TeachersFolder(tmp_path / "t").teacher(3)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"teacher-0003.*damaged or changed"):
        load_teachers(tmp_path / "t")


def test_code_that_a_foreign_folder_names_runs_only_if_trusted(tmp_path, monkeypatch):
    config = configuration(network={"module": f"{__name__}:Normalised"})
    train_teachers(config, tmp_path / "t", 2, jobs=1)
    load_teachers(tmp_path / "t")
    monkeypatch.setenv("DPMODEL_MARKS", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="names code that would run"):
        load_teachers(tmp_path / "t")
    assert len(load_teachers(tmp_path / "t", trust_code=True).networks) == 2


def test_the_digest_of_the_data_tells_nothing_without_its_key(tmp_path):
    found = []
    for name in "ab":
        train_teachers(configuration(), tmp_path / name, 2, jobs=1)
        found.append(Ensemble.load(TeachersFolder(tmp_path / name)).data)
    assert found[0] != found[1]


def command(folder, jobs):
    arguments = ["teachers", str(folder / "run.yaml"), "--parts", "40", "-o", str(folder / "t"), "--jobs", str(jobs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "dpmodel", *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_command_goes_on_and_gives_the_teachers_of_an_uninterrupted_one(jobs, tmp_path):
    values = {**VALUES, "training": {"epochs": 60, "batch_size": 2}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    process, folder = command(tmp_path, jobs), tmp_path / "t"
    while len(list(folder.glob("teacher-*.safetensors"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = Ensemble.load(TeachersFolder(folder))
    assert len(list(folder.glob("teacher-*.safetensors"))) < 40
    process = command(tmp_path, jobs)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert Ensemble.load(TeachersFolder(folder)).ensemble_id == first.ensemble_id
    assert not list(folder.glob("*.tmp"))
    network = load_teachers(folder)
    job = TeacherJob(0, str(folder), first.ensemble_id, make_config(values).to_yaml())
    before = weights(network)[0]
    TeachersFolder(folder).teacher(0).unlink()
    assert job.train(lambda number, step: None).finished
    assert same(before, weights(load_teachers(folder))[0])
