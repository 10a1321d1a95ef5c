"""``train_from_config`` is killed, or interrupted twice, at any moment: nothing is lost, and it can be completed."""

import os
import signal
from itertools import count

import pytest

from dpmodel import Callback
from dpmodel.callbacks import Silence
from dpmodel.config import make_config
from dpmodel.runs.evaluate import evaluate_run
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.train import train_from_config
from monitors.spent import privacy_spent

from ..journey import SETTINGS as TINY
from ..saving.test_record import KILLED, killed_at, require_covered, witnessed

SETTINGS = {
    **TINY,
    "privacy": {"noise_multiplier": 1.5},
    "training": {"epochs": 1, "batch_size": 12},
    "output": {"curve": False, "save_every_steps": 2},
}


def train(path, *callbacks, **options):
    return train_from_config(make_config(SETTINGS), path, callbacks=[Silence(), *callbacks], **options)


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory):
    """Import the modules of a training once, rather than in each child."""
    train(tmp_path_factory.mktemp("warm") / "run")


def require_complete(folder):
    """Every file of a finished training is there, and all state the same epsilon."""
    ledger, report = folder.read_ledger(), folder._report()
    assert folder.ended() == "finished"
    assert folder.statement.is_file()
    assert not folder.state.exists()
    assert report["ledger_digest"] == ledger.digest()
    assert report["epsilon"] == privacy_spent(ledger, 1e-5).epsilon == evaluate_run(folder.path).spent.epsilon


@pytest.mark.slow
def test_a_training_that_is_killed_at_any_moment_is_completed(tmp_path):
    for instant in count(0, 4):
        folder, witness = RunFolder(tmp_path / str(instant)), tmp_path / f"released-{instant}"
        ended = killed_at(instant, witness, lambda folder=folder: train(folder.path))
        require_covered(folder, witness)
        if folder.ended() is None and folder.state.exists():
            train(folder.path, resume=True)
            require_covered(folder, witness)
        if folder.ended() is not None:
            folder.state.unlink(missing_ok=True)
            require_complete(folder)
        if ended:
            break
    assert instant > 20


class CtrlC(Callback):
    """Presses Ctrl-C after step 3, and again at the given moment after that."""

    def __init__(self, instant):
        self.instant = instant

    def on_train_step_end(self, run):
        if run.step != 3:
            return
        os.kill(os.getpid(), signal.SIGINT)
        passed, fsync, replace = count(), os.fsync, os.replace

        def pass_instant():
            if next(passed) == self.instant:
                os.kill(os.getpid(), signal.SIGINT)

        def fsync_then(handle):
            fsync(handle)
            pass_instant()

        def replace_then(source, target, **options):
            replace(source, target, **options)
            pass_instant()

        os.fsync, os.replace = fsync_then, replace_then


def interrupted_twice(instant, folder, witness):
    """Whether the training ended before the second Ctrl-C."""

    def action():
        try:
            train(folder.path, CtrlC(instant))
        except KeyboardInterrupt:
            os._exit(KILLED)

    return killed_at(-1, witness, action)


@pytest.mark.slow
def test_a_second_ctrl_c_at_any_moment_loses_no_release_and_no_folder(tmp_path):
    for instant in count(0, 2):
        folder, witness = RunFolder(tmp_path / str(instant)), tmp_path / f"released-{instant}"
        ended = interrupted_twice(instant, folder, witness)
        require_covered(folder, witness)
        assert witnessed(witness).total == 3
        assert folder.ended() is None
        train(folder.path, resume=True)
        require_covered(folder, witness)
        require_complete(folder)
        if ended:
            break
    assert instant > 5
