"""Students: public inputs, paid labels, and the whole epsilon of their ledger."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from dpmodel.cli.application import run
from dpmodel.config import make_config
from dpmodel.data import load_dataset
from dpmodel.data.splits import public_permutation
from dpmodel.prediction import (
    Answer,
    BudgetExhausted,
    Confidence,
    EnsembleLogits,
    QueryLedger,
    load_teachers,
    train_student,
    train_teachers,
)
from dpmodel.prediction.teachers_folder import Ensemble, TeachersFolder
from dpmodel.saving.checkpoint import load_checkpoint
from dpmodel.saving.lock import FolderLock
from monitors import GaussianEvent
from monitors.errors import ConfigError, DataError

VALUES = {
    "data": {"name": "synthetic", "num_train": 400, "num_test": 100, "num_classes": 3, "shape": [1, 4, 4]},
    "network": {"name": "linear"},
    "optimizer": {"name": "Momentum", "lr": 0.3},
    "privacy": {"noise_multiplier": 1.0},
    "training": {"epochs": 3, "batch_size": 8},
}
PARTS = 20


def configuration(**changes):
    return make_config({**VALUES, **changes})


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers") / "t"
    assert train_teachers(configuration(), folder, PARTS, jobs=1).ok
    return folder


@pytest.fixture
def ledger(tmp_path):
    with QueryLedger(tmp_path / "queries", 20.0, 1e-5) as opened:
        yield opened


def test_a_student_spends_the_budget_and_is_measured_on_what_was_not_queried(teachers, ledger):
    student = train_student(configuration(), teachers, queries=60, ledger=ledger)
    assert ledger.spent == student.epsilon == pytest.approx(20.0, rel=1e-6)
    assert student.epsilon <= 20.0
    assert [count for _, count in ledger.ledger] == [60]
    assert (student.answered, student.held_out) == (60, 40)
    public = load_dataset(**configuration().data.reader_arguments).test
    rows = torch.as_tensor(public_permutation(100))
    right = student.network(public.transform_batch(public.x[rows])).argmax(1) == public.y[rows]
    assert student.accuracy == pytest.approx(float(right[60:].double().mean()))
    answered = student.labels.answer.labels == public.y[rows[:60]]
    assert student.label_accuracy == pytest.approx(float(answered.double().mean()))
    assert student.labels.rows.tolist() == public_permutation(100)[:60].tolist()
    assert student.notes == ()


@pytest.mark.slow
def test_answers_with_little_noise_are_mostly_right(teachers, tmp_path):
    with QueryLedger(tmp_path / "queries", 300.0, 1e-5) as ledger:
        student = train_student(configuration(), teachers, queries=60, ledger=ledger)
    assert student.label_accuracy > 0.5  # parts and noise are secret: a guess is right once in three


def test_the_student_depends_on_the_answers_alone(teachers, ledger, monkeypatch):
    """Other labels in the data, private and public, change nothing but the accuracies."""
    class_zero = torch.zeros(5, 3, dtype=torch.float64)
    class_zero[:, 0] = 9.0
    found = []
    monkeypatch.setattr(EnsembleLogits, "_summed", lambda self, inputs, size: class_zero.long().numpy() * 2**50)
    for _ in range(2):
        student = train_student(configuration(), teachers, queries=5, ledger=ledger, noise_multiplier=20.0)
        assert student.labels.answer.labels.tolist() == [0] * 5
        found.append(list(student.network.state_dict().values()))
    assert all(map(torch.equal, *found))


def test_self_training_never_reads_the_labels_of_the_public_data(tmp_path, monkeypatch):
    scores = torch.eye(3, dtype=torch.float64).repeat(10, 1)
    monkeypatch.setattr(EnsembleLogits, "query", lambda self, inputs: Answer(scores, votes=True))
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    networks = []
    (tmp_path / "t").mkdir()
    for turn in range(2):
        test_labels = np.tile([0, 1, 2] if turn else [2, 2, 0], 20)
        np.savez(tmp_path / f"{turn}.npz", x_train=x, y_train=np.tile([0, 1, 2], 20), x_test=-x, y_test=test_labels)
        config = configuration(
            data={"name": "npz", "root": str(tmp_path / f"{turn}.npz"), "num_classes": 3},
        )
        if not turn:
            train_teachers(config, tmp_path / "t", 4, jobs=1, seed=5)
        with QueryLedger(tmp_path / f"q{turn}", 8.0, 1e-5) as ledger:
            student = train_student(config, tmp_path / "t", queries=30, ledger=ledger, rounds=2)
        networks.append(list(student.network.state_dict().values()))
    assert all(map(torch.equal, *networks))


def test_comparisons_and_answers_are_both_charged(teachers, ledger):
    confidence = Confidence(threshold=15.0, noise_multiplier=4.0)
    student = train_student(configuration(), teachers, queries=40, ledger=ledger, confidence=confidence)
    charged = sorted((event.noise_multiplier, count) for event, count in ledger.ledger)
    assert (4.0, 40) in charged
    assert (student.labels.noise_multiplier, student.answered) in charged
    assert 0 < student.answered <= 40
    assert student.epsilon == ledger.spent <= 20.0


def test_no_answer_is_no_student(teachers, ledger):
    with pytest.raises(DataError, match="no query was answered"):
        train_student(configuration(), teachers, queries=5, ledger=ledger, confidence=Confidence(1000.0, 4.0))


def test_another_network_with_other_features_may_learn(teachers, ledger):
    config = configuration(
        network={"name": "mlp", "hidden": [8]},
        features={"name": "network", "network": "linear", "num_classes": 64},
        training={"epochs": 60, "batch_size": 8},
        optimizer={"name": "Momentum", "lr": 0.05},
    )
    student = train_student(config, teachers, queries=60, ledger=ledger)
    assert student.accuracy > 0.4  # a guess is right once in three; 25 students had 0.675 or more
    assert student.network(torch.zeros(1, 64)).shape == (1, 3)


def test_labels_that_were_paid_for_are_used_again(teachers, ledger, tmp_path):
    first = train_student(configuration(), teachers, queries=60, ledger=ledger, output=tmp_path / "s")
    longer = configuration(training={"epochs": 5, "batch_size": 8})
    second = train_student(longer, teachers, queries=60, ledger=ledger, output=tmp_path / "s")
    assert (first.reused, second.reused) == (False, True)
    assert first.epsilon == second.epsilon == ledger.spent
    assert torch.equal(first.labels.answer.scores, second.labels.answer.scores)
    assert json.loads((tmp_path / "s" / "student.json").read_text())["epsilon"] == second.epsilon
    weights = load_checkpoint(tmp_path / "s" / "student.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in second.network.state_dict().items())
    with pytest.raises(ConfigError, match="queries is 50 here and 60 there"):
        train_student(configuration(), teachers, queries=50, ledger=ledger, output=tmp_path / "s")
    for charged in (0, 50):  # another ledger that has spent as much does not hold their charge either
        with QueryLedger(tmp_path / f"other{charged}", 90.0, 1e-12) as other:
            if charged:
                other.charge(GaussianEvent(2.0), charged)
                assert other.spent > ledger.spent
            with pytest.raises(ConfigError, match="give the ledger that holds its charge"):
                train_student(configuration(), teachers, queries=60, ledger=other, output=tmp_path / "s")


def test_labels_are_kept_although_the_training_failed(teachers, ledger, tmp_path, monkeypatch):
    monkeypatch.setattr("dpmodel.prediction.student._taught", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_student(configuration(), teachers, queries=60, ledger=ledger, output=tmp_path / "s")
    spent = ledger.spent
    monkeypatch.undo()
    assert train_student(configuration(), teachers, queries=60, ledger=ledger, output=tmp_path / "s").reused
    assert ledger.spent == spent


def test_the_labels_do_not_reveal_the_id_of_the_teachers(teachers, ledger, tmp_path):
    train_student(configuration(), teachers, queries=10, ledger=ledger, output=tmp_path / "s")
    secret = Ensemble.load(TeachersFolder(teachers)).ensemble_id.encode()
    assert all(secret not in file.read_bytes() for file in (tmp_path / "s").iterdir())


def test_a_second_student_is_refused_once_the_budget_is_spent(teachers, ledger):
    train_student(configuration(), teachers, queries=60, ledger=ledger)
    spent = ledger.spent
    with pytest.raises(BudgetExhausted):
        train_student(configuration(), teachers, queries=60, ledger=ledger)
    with pytest.raises(BudgetExhausted):
        train_student(configuration(), teachers, queries=60, ledger=ledger, noise_multiplier=5.0)
    assert ledger.spent == spent


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"queries": 100}, "queries must be at most 99, got 100: there are 100 public inputs"),
        ({}, {"public": "train"}, "are those of the teachers, which are private"),
        ({"data": {**VALUES["data"], "mean": 0.5}}, {}, "need public inputs of the same scale"),
        (
            {"normalise": {"name": "private", "noise_multiplier": 1.0, "norm_bound": 1.0, "square_bound": 1.0}},
            {},
            "normalise releases statistics of private data",
        ),
        ({"data": {**VALUES["data"], "validation": 50}}, {}, "data.validation=50 replaces the test examples"),
        ({}, {"public": "all"}, "public must be one of"),
        ({}, {"queries": 0}, "queries must be"),
        ({}, {"rounds": -1}, "rounds must be"),
    ],
)
def test_bad_input_is_refused_for_free(changes, arguments, message, teachers, ledger):
    with pytest.raises(ValueError, match=message):
        train_student(configuration(**changes), teachers, **{"queries": 10, "ledger": ledger, **arguments})
    assert ledger.spent == 0.0


def test_the_data_of_the_teachers_are_not_public_inputs_under_another_name(tmp_path, ledger):
    x, y = np.random.default_rng(0).normal(size=(2, 30, 4)).astype(np.float32), np.tile([0, 1, 2], 10)
    for name, train, test in (("private", 0, 1), ("exchanged", 1, 0)):
        np.savez(tmp_path / f"{name}.npz", x_train=x[train], y_train=y, x_test=x[test], y_test=y)
    private, exchanged = (
        configuration(data={"name": "npz", "root": str(tmp_path / f"{name}.npz"), "num_classes": 3})
        for name in ("private", "exchanged")
    )
    train_teachers(private, tmp_path / "t", 4, jobs=1)
    with pytest.raises(ConfigError, match="the test examples of data are those of the teachers"):
        train_student(exchanged, tmp_path / "t", queries=5, ledger=ledger)
    assert ledger.spent == 0.0


@pytest.mark.parametrize("features", [None, {"name": "network", "network": "linear", "num_classes": 8}])
@pytest.mark.parametrize("public", ["train", "test"])
def test_a_single_row_of_the_teachers_is_no_public_input(tmp_path, ledger, public, features):
    x, y = np.random.default_rng(0).normal(size=(3, 30, 4)).astype(np.float32), np.tile([0, 1, 2], 10)
    for name, train, test in (("private", 0, 1), ("others", 1, 2)):
        np.savez(tmp_path / f"{name}.npz", x_train=x[train], y_train=y, x_test=x[test], y_test=y)
    x[1:, 7] = x[0, 3]
    np.savez(tmp_path / "mixed.npz", x_train=x[1], y_train=y, x_test=x[2], y_test=y)
    private, others, mixed = (
        configuration(data={"name": "npz", "root": str(tmp_path / f"{name}.npz"), "num_classes": 3}, features=features)
        for name in ("private", "others", "mixed")
    )
    folder = TeachersFolder(tmp_path / "t")
    train_teachers(private, folder.path, 4, jobs=1)
    with pytest.raises(ConfigError, match=f"1 of the {public} examples, the first of them in row 7, have the inputs"):
        train_student(mixed, folder.path, queries=5, ledger=ledger, public=public)
    assert ledger.spent == 0.0
    assert train_student(others, folder.path, queries=5, ledger=ledger, public=public, noise_multiplier=9.0).answered
    # Folders of earlier versions have no digests of rows.
    earlier = replace(Ensemble.load(folder), row_digests=None)
    with FolderLock(folder.path) as lock:
        earlier.save(folder, lock)
    assert train_student(mixed, folder.path, queries=5, ledger=ledger, public=public, noise_multiplier=9.0).answered


def test_the_training_examples_of_other_data_may_be_the_public_inputs(teachers, ledger):
    data = {**VALUES["data"], "num_train": 90}
    student = train_student(configuration(data=data), teachers, queries=90, ledger=ledger, public="train")
    assert (student.answered, student.held_out) == (90, 100)


def test_a_damaged_file_of_labels_is_refused(teachers, ledger, tmp_path):
    train_student(configuration(), teachers, queries=10, ledger=ledger, output=tmp_path / "s")
    file = tmp_path / "s" / "labels.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or changed"):
        train_student(configuration(), teachers, queries=10, ledger=ledger, output=tmp_path / "s")


def test_the_commands_train_teachers_and_a_student(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(VALUES))
    folder = str(tmp_path / "t")
    assert run(["teachers", str(file), "--parts", "20", "-o", folder, "--jobs", "1"]) == 0
    shown = capsys.readouterr()
    assert "20 teachers" in shown.out
    assert "privacy, callbacks and output are not used" in shown.err
    assert run(["teachers", str(file), "--parts", "20", "-o", folder, "--jobs", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reused"] == 20
    ask = ["student", str(file), "--teachers", folder, "--queries", "50", "-o", str(tmp_path / "s")]
    assert run([*ask, "--budget-epsilon", "9"]) == 0
    assert "50 of 50 queries" in capsys.readouterr().out
    assert run([*ask, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["epsilon"] == pytest.approx(9.0, rel=1e-6)
    assert len(load_teachers(folder).networks) == 20
    assert run([*ask, "--threshold", "3"]) == 2
    assert run(["student", str(file), "--teachers", str(tmp_path / "no"), "--queries", "5"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
