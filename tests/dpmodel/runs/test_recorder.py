import json

import pytest

from dpmodel.callbacks import Callback
from dpmodel.config import make_config
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.train import default_directory, train_from_config
from monitors.ledger import Ledger
from monitors.ledger_file import ANNOUNCED_NOTE

TINY = {
    "data": {"name": "synthetic", "shape": [1, 4, 4], "num_train": 60, "num_test": 20, "num_classes": 2},
    "network": "linear",
    "optimizer": {"name": "SGD", "lr": 0.5},
    "privacy": {"noise_multiplier": 2.0},
    "training": {"epochs": 2, "batch_size": 6},
    "output": {"curve": False},
}


class Watcher(Callback):
    """Reads the ledger on disk after each step, as a crash would leave it."""

    def __init__(self, folder):
        self.folder = folder
        self.seen = []

    def on_train_step_end(self, run):
        on_disk = Ledger.load(self.folder.ledger)
        self.seen.append((run.step, run.ledger.total, on_disk.total, ANNOUNCED_NOTE in on_disk.notes))


def test_the_ledger_on_disk_is_never_behind_the_training(tmp_path):
    folder = RunFolder(tmp_path / "run")
    watcher = Watcher(folder)
    result = train_from_config(make_config(TINY), folder.path, callbacks=[watcher])
    assert [step for step, *_ in watcher.seen] == list(range(1, 21))
    for _, released, on_disk, noted in watcher.seen:
        assert on_disk >= released
        assert on_disk in (10, 20)
        assert noted
    final = Ledger.load(folder.ledger)
    assert final.total == 20
    assert final.notes == ()
    assert result.report.ledger_digest == final.digest()


@pytest.mark.parametrize(("key", "name"), [("checkpoint", "checkpoint"), ("history", "history")])
def test_files_that_are_switched_off_are_not_written(tmp_path, key, name):
    folder = RunFolder(tmp_path / "run")
    train_from_config(make_config(TINY, [f"output.{key}=false"]), folder.path)
    assert not getattr(folder, name).exists()
    assert folder.ledger.exists()
    assert folder.statement.exists()


def test_the_resolved_configuration_says_what_was_solved_for(tmp_path):
    config = make_config(TINY, ["privacy.noise_multiplier=null", "privacy.target_epsilon=3"])
    result = train_from_config(config, tmp_path / "run")
    text = result.folder.config.read_text()
    assert "# noise_multiplier was solved for target_epsilon 3" in text
    assert "num_examples: 60" in text
    assert json.loads(result.folder.report.read_text())["target_epsilon"] == 3.0


def test_the_run_folder_is_named_after_the_configuration():
    assert default_directory(make_config(TINY, source="somewhere/my_run.yaml")).as_posix() == "runs/my_run"
    assert default_directory(make_config(TINY, ["output.directory=out/a"])).as_posix() == "out/a"


def test_early_stopping_is_a_status_and_not_a_failure(tmp_path):
    config = make_config(
        TINY, ["callbacks=[{name: EarlyStopping, monitor: accuracy, patience: 1}]", "training.epochs=50"]
    )
    result = train_from_config(config, tmp_path / "run")
    assert result.report.status.startswith("stopped: ")
    assert result.report.steps == Ledger.load(result.folder.ledger).total < result.report.planned_steps
