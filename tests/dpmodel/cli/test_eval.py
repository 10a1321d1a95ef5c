import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dpmodel.config import load_config
from dpmodel.data import InMemoryDataset, load_dataset
from dpmodel.data.fingerprint import Fingerprint
from dpmodel.runs.evaluate import evaluated_classes
from dpmodel.runs.folder import RunFolder


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy of a run folder, which tests may change."""
    return Path(shutil.copytree(trained_once, tmp_path / "run"))


def test_metrics_and_claim_come_from_the_folder_alone(command, trained):
    code, text, _ = command("eval", trained)
    assert code == 0
    assert "test accuracy" in text
    assert "epsilon" in text


def test_a_setting_may_be_changed(command, trained):
    code, text, _ = command("eval", trained, "--set", "training.metrics=[f1]", "--json")
    assert code == 0
    assert list(json.loads(text)["metrics"]) == ["f1"]


@pytest.mark.parametrize(
    "setting", ["privacy.sampling=shuffle", "privacy.noise_multiplier=30", "privacy.clip=Automatic"]
)
def test_what_the_claim_rests_on_cannot_be_changed(command, trained, setting):
    code, text, error = command("eval", trained, "--set", setting)
    assert (code, text) == (2, "")
    assert f"{setting.split('=')[0]} is a fact of the training in the folder" in error


def test_the_claim_is_that_of_the_training_whatever_is_evaluated(command, trained):
    before = json.loads(command("eval", trained, "--json")[1])["privacy"]
    after = json.loads(command("eval", trained, "--set", "training.batch_size=60", "--json")[1])["privacy"]
    assert after == before
    stricter = json.loads(command("eval", trained, "--set", "privacy.delta=1e-6", "--json")[1])["privacy"]
    assert stricter["epsilon"] > before["epsilon"]


def test_the_epsilon_that_is_shown_is_never_rounded_down(command, trained):
    exact = json.loads(command("eval", trained, "--json")[1])["privacy"]["epsilon"]
    text = command("eval", trained)[1]
    shown = float(re.search(r"epsilon\s+\S\s+([\d.]+) at delta", text)[1])
    assert exact <= shown < exact + 1e-3


def test_a_folder_without_a_training_is_bad_usage(command, tmp_path):
    code, _, error = command("eval", tmp_path)
    assert code == 2
    assert "contains no training" in error
    code, _, error = command("eval", tmp_path / "nothing")
    assert code == 2
    assert "does not exist" in error


def test_a_changed_ledger_is_refused(command, trained):
    path = trained / "ledger.json"
    path.write_text(path.read_text().replace("1.5", "9.5"))
    code, _, error = command("eval", trained)
    assert code == 1
    assert "was changed after it was written" in error


@pytest.mark.parametrize(
    ("name", "words"), [("ledger.json", "no epsilon can be stated"), ("checkpoint.safetensors", "is missing")]
)
def test_a_missing_file_is_named(command, trained, name, words):
    (trained / name).unlink()
    code, _, error = command("eval", trained)
    assert code == 1
    assert name in error
    assert words in error


def test_weights_of_a_different_network_are_refused(command, trained):
    code, _, error = command("eval", trained, "--set", "network={name: mlp, hidden: [3]}")
    assert code == 1
    assert "checkpoint.safetensors" in error


def test_a_truncated_checkpoint_is_refused(command, trained):
    path = trained / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    code, _, error = command("eval", trained)
    assert code == 1
    assert "Traceback" not in error


def test_a_finished_training_has_no_progress_row(command, trained):
    assert "stopped at" not in command("eval", trained)[1]
    found = json.loads(command("eval", trained, "--json")[1])["training"]
    assert found == {"status": "finished", "steps": 20, "planned_steps": 20}


def test_an_interrupted_training_says_where_it_stopped(command, tiny, tmp_path):
    out = tmp_path / "run"
    command("train", tiny, "--set", "privacy.monitor.max_eps=1.2", "--output", out, "--quiet")
    found = json.loads(command("eval", out, "--json")[1])["training"]
    assert found["steps"] < found["planned_steps"] == 20
    assert f"stopped at step {found['steps']} of 20 (stopped: " in " ".join(command("eval", out)[1].split())


def test_a_killed_training_is_evaluated_at_its_last_complete_epoch_and_says_so(command, trained):
    (trained / "privacy_report.json").unlink()
    (trained / "history.csv").write_text("epoch,step\n1,10\n")
    assert "stopped at step 10 of 20 (still running, or killed)" in " ".join(command("eval", trained)[1].split())


def test_a_finished_folder_with_the_report_of_a_different_ledger_is_refused(command, trained):
    path = trained / "privacy_report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ledger_digest": "another"}))
    code, _, error = command("eval", trained)
    assert code == 1
    assert "privacy_report.json does not match ledger.json and releases.jsonl beside it" in " ".join(error.split())


def test_eval_says_how_to_complete_a_folder_without_a_report(command, trained):
    (trained / "privacy_report.json").unlink()
    assert "privacy_report.json is missing, or states" in " ".join(command("eval", trained)[1].split())


@pytest.fixture
def elsewhere(command, tmp_path, monkeypatch):
    """A run of a configuration with data in its folder; the current folder has different data of the same name."""
    x = np.random.default_rng(0).random((60, 3)).astype(np.float32)
    labels = (x[:, 0] > 0.5).astype(int)
    for name, answers in (("here", labels), ("there", 1 - labels)):
        (tmp_path / name).mkdir()
        arrays = {"x_train": x[:40], "y_train": labels[:40], "x_test": x[40:], "y_test": answers[40:]}
        np.savez(tmp_path / name / "data.npz", **arrays)
    settings = "network: linear\noptimizer: SGD\nprivacy: {noise_multiplier: 2.0}\n"
    settings += "training: {epochs: 1, batch_size: 10}\noutput: {curve: false}\ndata: {name: npz, root: data.npz}\n"
    (tmp_path / "here" / "run.yaml").write_text(settings)
    monkeypatch.chdir(tmp_path / "here")
    assert command("train", "run.yaml", "--output", "out", "--quiet")[0] == 0
    monkeypatch.chdir(tmp_path / "there")
    return tmp_path / "here" / "out"


def test_the_data_of_the_training_are_found_from_any_folder(command, elsewhere):
    found = json.loads(command("eval", elsewhere, "--json")[1])["test_data"]
    assert found["same"] is True
    assert found["warning"] is None
    assert found["used"] == found["recorded"] == json.loads((elsewhere / "test_data.json").read_text())
    assert found["used"]["examples"] == 20
    assert "warning" not in command("eval", elsewhere)[1]


def test_different_test_data_are_evaluated_with_a_warning(command, elsewhere):
    question = ("eval", elsewhere, "--set", "data.root=data.npz")
    code, text, _ = command(*question)
    assert code == 0
    assert "not the test data that the run was measured on" in " ".join(text.replace("│", " ").split())
    found = json.loads(command(*question, "--json")[1])["test_data"]
    assert found["same"] is False
    assert found["used"]["sha256"] != found["recorded"]["sha256"]
    assert "20 examples" in found["warning"]


def test_changed_test_data_are_noticed(command, elsewhere):
    (elsewhere.parent / "data.npz").write_bytes((elsewhere.parents[1] / "there" / "data.npz").read_bytes())
    assert json.loads(command("eval", elsewhere, "--json")[1])["test_data"]["same"] is False


def test_a_run_that_recorded_no_test_data_says_so(command, elsewhere):
    (elsewhere / "test_data.json").unlink()
    found = json.loads(command("eval", elsewhere, "--json")[1])["test_data"]
    assert found["same"] is found["recorded"] is None
    assert "does not say which test data" in found["warning"]


def test_a_damaged_record_of_the_test_data_is_named(command, elsewhere):
    (elsewhere / "test_data.json").write_text("{}")
    code, _, error = command("eval", elsewhere)
    assert code == 1
    assert "test_data.json cannot be read" in error


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, "\0", "1" * 400, {"steps": "x"}, {"planned_steps": -1}])
@pytest.mark.sample(8)
def test_a_report_of_a_different_form_is_not_believed(command, elsewhere, content):
    report = elsewhere / "privacy_report.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(report.read_text()) | content)
    report.write_text(content)
    code, text, _ = command("eval", elsewhere, "--json")
    assert code == 0
    assert json.loads(text)["training"]["status"] is None


@pytest.mark.parametrize("content", ['{"ledger_digest": 3}', '{"steps": 3}'])
def test_a_report_of_a_different_ledger_is_refused(command, elsewhere, content):
    (elsewhere / "privacy_report.json").write_text(content)
    code, _, error = command("eval", elsewhere)
    assert code == 1
    assert "privacy_report.json does not match ledger.json" in " ".join(error.split())


def test_nothing_in_the_run_folder_is_a_digest_of_the_training_data(elsewhere):
    with np.load(elsewhere.parent / "data.npz") as data:
        train = InMemoryDataset(torch.from_numpy(data["x_train"]), torch.from_numpy(data["y_train"]))
    digest = Fingerprint.of(train).digest
    assert not [path.name for path in elsewhere.iterdir() if digest.encode() in path.read_bytes()]


def test_held_back_training_examples_leave_no_digest_and_their_number_is_compared(command, tiny, tmp_path):
    out = tmp_path / "run"
    command("train", tiny, "--set", "data.validation=7", "--output", out, "--quiet")
    assert json.loads((out / "test_data.json").read_text()) == {"examples": 7, "sha256": None}
    held_out = load_dataset(**load_config(RunFolder(out).config).data.reader_arguments).test
    digest = Fingerprint.of(held_out).digest
    assert not [path.name for path in out.rglob("*") if path.is_file() and digest[:12].encode() in path.read_bytes()]
    found = json.loads(command("eval", out, "--json")[1])["test_data"]
    assert found["same"] is None
    assert "only their number was compared" in found["warning"]
    assert len(evaluated_classes(out)[0]) == 7
    (out / "test_data.json").write_text(json.dumps({"examples": 7, "sha256": digest}))  # of an earlier version
    assert "remove it before you share" in json.loads(command("eval", out, "--json")[1])["test_data"]["warning"]
    others = ("--set", "data.validation=8", "--set", "data.num_examples=null")
    changed = json.loads(command("eval", out, *others, "--json")[1])["test_data"]
    assert changed["same"] is False
    assert "8 examples held back from the training data now" in changed["warning"]
