"""Answers of a run folder: free after private training, charged or refused after any other."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpmodel.prediction import query_status
from dpmodel.prediction.logits import POST_PROCESSING
from dpmodel.runs.evaluate import evaluate_run
from dpmodel.runs.predict import open_predictor
from monitors.spent import epsilon_text

from .conftest import TINY

CHARGED = ("--mechanism", "dp_logits", "--budget-epsilon", "5")


@pytest.fixture(scope="session")
def plain_once(tmp_path_factory):
    """The folder of a training without privacy."""
    from dpmodel import load_config, train_from_config

    folder = tmp_path_factory.mktemp("plain")
    head, _, rest = TINY.partition("privacy:")
    tail = rest[rest.index("training:") :]
    (folder / "plain.yaml").write_text(f"{head}privacy: {{noise: null}}\n{tail}")
    train_from_config(load_config(folder / "plain.yaml"), folder / "run")
    return folder / "run"


@pytest.fixture
def plain(plain_once, tmp_path):
    return Path(shutil.copytree(plain_once, tmp_path / "plain"))


@pytest.fixture
def private(trained_once, tmp_path):
    return Path(shutil.copytree(trained_once, tmp_path / "private"))


@pytest.fixture
def rows(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4)).astype(np.uint8)
    np.save(tmp_path / "rows.npy", values)
    return tmp_path / "rows.npy"


def table(text):
    """The answers as printed: lines after the header."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("row,"))
    return list(csv.DictReader(lines[start:]))


def test_a_privately_trained_run_answers_exactly_for_free_and_says_why(command, private, rows):
    code, text, _ = command("predict", private, rows, "--json")
    assert code == 0
    found = json.loads(text)
    assert found["free"] is True
    assert found["claim"].startswith(POST_PROCESSING)
    assert found["training"]["epsilon"] == pytest.approx(evaluate_run(private).spent.epsilon)
    assert "budget" not in found
    assert not (private / "queries").exists()
    again = json.loads(command("predict", private, rows, "--json")[1])
    assert again["answers"] == found["answers"]


def test_exact_answers_are_those_of_the_network(private, rows):
    from dpmodel.nets import build_network
    from dpmodel.saving.checkpoint import load_weights

    network = build_network("linear", defaults={"in_features": 16, "num_classes": 3})
    load_weights(network, private / "checkpoint.safetensors")
    x = torch.from_numpy(np.load(rows))
    with open_predictor(private) as predictor:
        assert torch.allclose(predictor.query(x).scores.float(), network(x.float() / 255.0), atol=1e-6)


def test_the_epsilon_of_the_training_is_shown(command, private, rows):
    text = command("predict", private, rows)[1]
    assert "the training spent epsilon" in text
    assert [row["label"] for row in table(text)] == [str(label) for label in _labels(command, private, rows)]


def _labels(command, folder, rows):
    return json.loads(command("predict", folder, rows, "--json")[1])["answers"]["labels"]


def test_neither_data_nor_their_location_are_needed(command, private, rows, monkeypatch):
    monkeypatch.setattr("dpmodel.runs.predict.load_dataset", lambda **_: pytest.fail("the data were read"))
    assert command("predict", private, rows)[0] == 0


def test_a_folder_of_an_earlier_version_reads_its_data(command, private, rows):
    answers = _labels(command, private, rows)
    (private / "inputs.json").unlink()
    assert _labels(command, private, rows) == answers
    (private / "inputs.json").write_text('{"shape": [0]}')
    code, _, error = command("predict", private, rows)
    assert code == 1
    assert "inputs.json cannot be read" in error


def test_a_run_without_privacy_is_refused_with_what_to_do(command, plain, rows):
    code, text, error = command("predict", plain, rows)
    assert (code, text) == (2, "")
    assert "was not trained with differential privacy" in error
    assert "--mechanism dp_logits --budget-epsilon" in error


def test_a_run_with_known_randomness_is_refused_like_one_without_privacy(command, tmp_path, rows):
    from dpmodel import load_config, train_from_config

    (tmp_path / "seeded.yaml").write_text(TINY)
    train_from_config(load_config(tmp_path / "seeded.yaml", ["privacy.sampling_seed=3"]), tmp_path / "run")
    code, text, error = command("predict", tmp_path / "run", rows)
    assert (code, text) == (2, "")
    assert "(reproducible sampling: no guarantee)" in error
    assert command("predict", tmp_path / "run", rows, *CHARGED)[0] == 0
    assert query_status(tmp_path / "run" / "queries").asked == 5


def test_each_row_is_charged(command, plain, rows):
    code, text, _ = command("predict", plain, rows, *CHARGED, "--json")
    assert code == 0
    found = json.loads(text)
    assert (found["free"], found["charged"]) == (False, 5)
    status = query_status(plain / "queries")
    assert (status.asked, status.left, status.spent, status.epsilon, status.delta) == tuple(found["budget"].values())
    assert status.asked == 5
    found = json.loads(command("predict", plain, rows, *CHARGED, "--json")[1])
    assert found["budget"]["asked"] == 10


def test_repeated_queries_are_free_only_if_asked(command, plain, rows):
    first = json.loads(command("predict", plain, rows, *CHARGED, "--cache", "--probabilities", "--json")[1])
    again = json.loads(command("predict", plain, rows, *CHARGED, "--cache", "--probabilities", "--json")[1])
    assert again["answers"] == first["answers"]
    assert (first["charged"], again["charged"], again["budget"]["asked"]) == (5, 0, 5)
    assert json.loads(command("predict", plain, rows, *CHARGED, "--json")[1])["charged"] == 5


def test_a_batch_that_does_not_fit_is_refused_whole(command, plain, rows):
    code, text, error = command("predict", plain, rows, *CHARGED, "--noise-multiplier", "1")
    assert (code, text) == (1, "")
    assert "5 answers do not fit the budget" in error
    assert query_status(plain / "queries").asked == 0


def test_the_status_is_printed(command, plain, rows):
    command("predict", plain, rows, *CHARGED, "--ledger", plain / "elsewhere", "--sensitivity", "0.5")
    code, text, _ = command("predict", "--status", plain / "elsewhere")
    assert code == 0
    assert "asked:  5" in text
    assert "budget: epsilon 5 at delta 1e-05" in text
    assert "was not verified" in text
    found = json.loads(command("predict", "--status", plain / "elsewhere", "--json")[1])
    assert {"asked", "left", "spent", "epsilon", "delta"} <= found.keys()
    assert command("predict", "--status", plain)[0] == 2
    assert command("predict", plain, "--status", plain / "elsewhere")[0] == 2


def test_an_empirical_defence_has_no_ledger_and_says_so(command, plain, rows):
    code, text, _ = command("predict", plain, rows, "--mechanism", "dp_logits", "--sensitivity", "none")
    assert code == 0
    assert "no epsilon" in text
    assert not (plain / "queries").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mechanism", "dp_logits"), "state it once with --budget-epsilon"),
        (("--mechanism", "dp_logit"), "dp_logits"),
        ((*CHARGED, "--noise-multiplier", "-1"), "noise_multiplier"),
        ((*CHARGED, "--sensitivity", "worst"), "worst_case"),
        ((*CHARGED, "--sensitivity", "convex"), "needs a ConvexHead"),
        (("--mechanism", "dp_logits", "--budget-epsilon", "0"), "epsilon"),
        ((*CHARGED, "--top-k", "4"), "number of classes, 3"),
        ((*CHARGED, "--top-k", "0"), "--top-k"),
        ((*CHARGED, "--threshold", "1.5"), "--threshold"),
        ((*CHARGED, "--no-labels"), "nothing to answer"),
        ((*CHARGED, "--output", "answers.txt"), "must end in"),
        ((*CHARGED, "--output", "missing/answers.csv"), "cannot be written"),
        (("--mechanism", "dp_logits", "--sensitivity", "none", "--cache"), "leave cache out"),
        ((*CHARGED, "--sensitivity", "none"), "so no budget can be kept"),
    ],
)
def test_bad_settings_are_refused_and_cost_nothing(command, plain, rows, arguments, words, monkeypatch):
    monkeypatch.chdir(plain)
    code, text, error = command("predict", plain, rows, *arguments)
    assert (code, text) == (2, "")
    assert words in error
    assert not (plain / "queries").exists() or query_status(plain / "queries").asked == 0


INPUTS = {
    "shape": (np.zeros((2, 1, 5, 4), np.uint8), "of shape (1, 4, 4), got shape (1, 5, 4)"),
    "floats": (np.zeros((2, 1, 4, 4), np.float32), "whole numbers from 0 to 255"),
    "range": (np.full((2, 1, 4, 4), 256), "whole numbers from 0 to 255"),
    "text": (np.array([["a"]]), "not numbers"),
    "objects": (np.array([None]), "holds Python objects"),
    "scalar": (np.array(3, np.uint8), "not numbers"),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_of_the_wrong_form_cost_nothing(command, plain, tmp_path, kind):
    values, words = INPUTS[kind]
    np.save(tmp_path / "bad.npy", values)
    code, _, error = command("predict", plain, tmp_path / "bad.npy", *CHARGED)
    assert code == 1
    assert words in error
    assert query_status(plain / "queries").asked == 0


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.npy", None, "does not exist"),
        ("torn.npy", b"\x93NUMPY\x01\x00", "not a readable"),
        ("other.txt", b"words", "neither a .npy nor a .npz"),
        ("torn.npz", b"PK\x03\x04rest", "not a readable"),
        ("bad.png", b"PNG", "cannot be read"),
    ],
)
def test_unreadable_files_cost_nothing(command, plain, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, _, error = command("predict", plain, tmp_path / name, *CHARGED)
    assert code == 1
    assert words in error
    assert query_status(plain / "queries").asked == 0


def test_archives_hold_one_array_or_one_named_x(command, private, rows, tmp_path):
    values = np.load(rows)
    answers = _labels(command, private, rows)
    np.savez(tmp_path / "one.npz", anything=values)
    np.savez(tmp_path / "two.npz", x=values[:, 0], y=np.zeros(5))
    np.savez(tmp_path / "none.npz", a=values, b=values)
    assert _labels(command, private, tmp_path / "one.npz") == answers
    assert _labels(command, private, tmp_path / "two.npz") == answers
    assert "name one of its arrays 'x'" in command("predict", private, tmp_path / "none.npz")[2]


def test_images_are_answered_in_the_order_of_their_names(command, private, rows, tmp_path):
    values = np.load(rows)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (2, 0, 1):
        Image.fromarray(values[number, 0]).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("not an image")
    found = json.loads(command("predict", private, folder, "--json")[1])["answers"]
    assert found["file"] == ["0.png", "1.png", "2.png"]
    assert found["labels"] == _labels(command, private, rows)[:3]
    assert _labels(command, private, folder / "1.png") == found["labels"][1:2]
    Image.new("L", (5, 4)).save(folder / "3.png")
    assert "3.png: each row must be" in command("predict", private, folder)[2]
    (tmp_path / "empty").mkdir()
    assert "holds no images" in command("predict", private, tmp_path / "empty")[2]


def test_answers_are_written_to_a_file(command, private, rows, tmp_path):
    wanted = ("--probabilities", "--top-k", "2", "--threshold", "0.5")
    found = json.loads(command("predict", private, rows, *wanted, "--json")[1])["answers"]
    code, text, _ = command("predict", private, rows, *wanted, "--output", tmp_path / "a.csv")
    assert code == 0
    assert "row,label" not in text
    lines = table((tmp_path / "a.csv").read_text())
    assert list(lines[0]) == [
        "row",
        "label",
        *(f"probability_{index}" for index in range(3)),
        "top_0",
        "top_1",
        "confident",
    ]
    assert [int(line["top_1"]) for line in lines] == [row[1] for row in found["top_k"]]
    command("predict", private, rows, *wanted, "--output", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["answers"]["labels"] == found["labels"]


def test_images_are_resized_and_features_computed_as_in_the_training(tmp_path):
    """The same answers as the model that was trained, from images of the size that the reader gives."""
    from dpmodel.config import make_config
    from dpmodel.runs.build import build_training
    from dpmodel.runs.train import train_from_config
    from dpmodel.saving.checkpoint import load_weights

    config = make_config(
        {
            "data": {"name": "npz", "root": str(tmp_path / "data.npz"), "image_size": 16, "mean": 0.4, "std": 0.2},
            "features": {"name": "scattering", "J": 2, "L": 2, "cache": False},
            "network": "linear",
            "optimizer": {"name": "SGD", "lr": 0.1},
            "privacy": {"noise_multiplier": 2.0},
            "training": {"epochs": 1, "batch_size": 10},
            "normalise": {"name": "private", "noise_multiplier": 5.0, "norm_bound": 20.0, "square_bound": 80.0},
            "output": {"curve": False},
        }
    )
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 256, (60, 1, 12, 12)).astype(np.uint8), draw.integers(0, 3, 60)
    np.savez(tmp_path / "data.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    train_from_config(config, tmp_path / "run")
    training = build_training(config)
    load_weights(training.task.network, tmp_path / "run" / "checkpoint.safetensors")
    with open_predictor(tmp_path / "run") as predictor:
        scores = predictor.query(predictor.rows(x[40:])).scores
        assert predictor.mechanism.why_free is not None
        assert predictor.inputs.shape == (1, 16, 16)
    expected = training.model.predict(training.task.data.test)
    assert torch.allclose(scores.float(), expected, atol=1e-4)


def test_the_card_and_a_later_plan_state_what_the_answers_cost(command, plain, rows):
    unasked = command("card", plain)[1]
    assert "none were charged in the run folder" in unasked
    command("predict", plain, rows, *CHARGED)
    shown = command("card", plain)[1]
    assert "5 were charged, at most epsilon 5.000 at delta 1e-05" in shown
    status = query_status(plain / "queries")
    assert f"({epsilon_text(status.spent)} so far)" in shown
    stated = json.loads(command("card", plain, "--json")[1])["card"]["accesses"]["queries"]
    assert stated == {"asked": 5, "spent": status.spent, "epsilon": 5.0, "delta": 1e-5, "notes": []}
    more = ("--set", f"privacy.spent=[{plain / 'queries' / 'ledger.json'}]")
    plan = ("budget", "-n", 1000, "-b", 50, "-e", 1, "--noise-multiplier", 1, "--accountant", "pld", "--json")
    alone, both = (json.loads(command(*plan, *spent)[1])["epsilon"] for spent in ((), more))
    assert both > alone


def test_the_card_repeats_what_voids_the_budget_of_answers(command, plain, rows):
    command("predict", plain, rows, *CHARGED, "--sensitivity", "0.5")
    assert "was not verified" in command("card", plain)[1]


def test_a_folder_of_queries_without_charges_changes_no_card(command, plain):
    before = command("card", plain)[1]
    (plain / "queries").mkdir()
    assert command("card", plain)[1] == before


def test_a_damaged_query_ledger_makes_no_card(command, plain, rows):
    command("predict", plain, rows, *CHARGED)
    (plain / "queries" / "ledger.json").write_text("{}")
    code, _, error = command("card", plain)
    assert code == 1
    assert "ledger.json" in error
