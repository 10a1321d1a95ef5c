"""Run folders that an earlier version wrote: its ledgers, reports and weights name no head."""

import json

import pytest

from dpmodel.callbacks import Silence
from dpmodel.config import make_config
from dpmodel.runs.evaluate import evaluate_run
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.train import train_from_config
from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from monitors.errors import CheckpointError, ConfigError
from monitors.events import GaussianEvent
from monitors.ledger import Ledger

from ..journey import SETTINGS as TINY


@pytest.fixture
def finished(tmp_path):
    """A finished run folder as an earlier version left it."""
    train_from_config(make_config(TINY), tmp_path / "run", callbacks=[Silence()])
    folder = RunFolder(tmp_path / "run")
    Ledger.load(folder.ledger).save(folder.ledger)
    folder.journal.unlink()
    report = json.loads(folder.report.read_text())
    del report["journals"]
    folder.report.write_text(json.dumps(report))
    tensors, values = read_tensor_file(folder.checkpoint)
    del values["info"]["heads"]
    write_tensor_file(folder.checkpoint, tensors, values)
    return folder


def test_a_finished_folder_is_still_read(finished):
    report = json.loads(finished.report.read_text())
    assert finished.ended() == "finished"
    assert evaluate_run(finished.path).spent.epsilon == report["epsilon"]
    with pytest.raises(ConfigError, match="has already ended"):
        train_from_config(make_config(TINY), finished.path, resume=True)


@pytest.mark.sample(3)
@pytest.mark.parametrize("releases", [0, 3, 1000])
def test_the_ledger_of_a_different_training_is_refused(finished, releases):
    ledger = Ledger()
    if releases:
        ledger.record(GaussianEvent(3.0), releases)
    ledger.save(finished.ledger)
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors does not match ledger\.json"):
        evaluate_run(finished.path)


def test_weights_that_name_a_journal_need_it(tmp_path):
    train_from_config(make_config(TINY), tmp_path / "run", callbacks=[Silence()])
    folder = RunFolder(tmp_path / "run")
    folder.journal.unlink()
    for ledger in (None, Ledger.load(folder.ledger)):
        if ledger is not None:
            ledger.save(folder.ledger)
        with pytest.raises(CheckpointError):
            evaluate_run(folder.path)
        assert folder.ended() is None
