"""The law of run folders: files restored from an older copy never lower epsilon; what contradicts is refused."""

import os
import shutil
import signal
from itertools import chain, combinations

import pytest

from dpmodel import Callback
from dpmodel.callbacks import Silence
from dpmodel.config import make_config
from dpmodel.figures.curve import curve_of_run
from dpmodel.runs.evaluate import evaluate_run
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.train import train_from_config
from dpmodel.saving.marks import VARIABLE
from monitors.errors import CheckpointError, ConfigError
from monitors.ledger import Ledger
from monitors.spent import privacy_spent

from ..journey import SETTINGS as TINY

#: 30 steps in blocks of 4; a query of a callback is on the ledger too.
SETTINGS = {**TINY, "privacy": {"noise_multiplier": 1.5}}
FILES = (
    "config.resolved.yaml",
    "ledger.json",
    "releases.jsonl",
    "training_state.safetensors",
    "privacy_report.json",
    "checkpoint.safetensors",
)
KINDS = ("running", "interrupted", "finished")
SUBSETS = list(chain.from_iterable(combinations(FILES, size) for size in range(len(FILES) + 1)))


class At(Callback):
    """Stops, copies the folder or kills the process after a step."""

    def __init__(self, **actions):
        self.actions = {int(name[1:]): action for name, action in actions.items()}

    def on_train_step_end(self, run):
        self.actions.get(run.step, lambda run: None)(run)


def interrupt(run):
    run.stop("interrupted (test)")


def kill(run):
    os._exit(9)


def query(run):
    from monitors.events import GaussianEvent

    run.ledger.record(GaussianEvent(0.9))


def in_child(action):
    process = os.fork()
    if process == 0:
        signal.alarm(60)
        try:
            action()
        finally:
            os._exit(0)
    os.waitpid(process, 0)


def train(path, *callbacks, **options):
    return train_from_config(make_config(SETTINGS), path, callbacks=[Silence(), *callbacks], **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By kind of folder: the folder, an older copy of it, and the epsilon that was truly spent."""
    base, found = tmp_path_factory.mktemp("folders"), {}

    def copy(name):
        return lambda run: shutil.copytree(base / name, base / f"{name}-older")

    running = base / "running"
    in_child(lambda: train(running, At(_13=copy("running"), _17=query, _23=kill)))
    train(base / "interrupted", At(_8=interrupt))
    copy("interrupted")(None)
    train(base / "interrupted", At(_17=query, _23=interrupt), resume=True)
    train(base / "finished", At(_8=interrupt))
    copy("finished")(None)
    train(base / "finished", At(_17=query), resume=True)
    for name, steps in {"running": 23, "interrupted": 23, "finished": 30}.items():
        # the query counts as well; everything was released by one process or without a loss
        ledger = Ledger().record(next(iter(RunFolder(base / name).read_ledger()))[0], steps)
        query(type("Queried", (), {"ledger": ledger}))
        found[name] = base / name, base / f"{name}-older", privacy_spent(ledger, 1e-5).epsilon
    return found


def restored(folders, kind, names, path):
    """A copy of a folder with the files ``names`` of its older copy."""
    folder, older, epsilon = folders[kind]
    shutil.copytree(folder, path)
    for name in names:
        (path / name).unlink(missing_ok=True)
        if (older / name).exists():
            shutil.copy(older / name, path / name)
    return path, epsilon


READERS = {
    "ledger": lambda path: privacy_spent(Ledger.load(path / "ledger.json"), 1e-5).epsilon,
    "folder": lambda path: privacy_spent(RunFolder(path).read_ledger(), 1e-5).epsilon,
    "eval": lambda path: evaluate_run(path).spent.epsilon,
    "plot": lambda path: curve_of_run(path).privacy.epsilons[-1],
    "resume": lambda path: train(path, resume=True).report.spent.epsilon,
}


def stated(reader, path):
    """What a reader states as spent; None if it refuses the folder."""
    try:
        return READERS[reader](path)
    except (CheckpointError, ConfigError, ValueError, FileNotFoundError):
        return None


def is_consistent(names, path):
    """Whether nothing in the folder is newer than its restored ledger and journal."""
    newer = [name for name in FILES[3:] if name not in names and (path / name).exists()]
    return {"ledger.json", "releases.jsonl"} <= set(names) and not newer


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_the_folders_as_they_were_left_are_read(kind, reader, folders, tmp_path):
    path, epsilon = restored(folders, kind, (), tmp_path / "run")
    value = stated(reader, path)
    if (kind, reader) == ("finished", "resume"):
        assert value is None
    else:
        assert value >= epsilon * (1 - 1e-12)


@pytest.mark.sample(30)
@pytest.mark.parametrize(
    "reader", ["ledger", "folder", *(pytest.param(name, marks=pytest.mark.slow) for name in ("eval", "plot", "resume"))]
)
@pytest.mark.parametrize("marks", ["on", "off"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_subset_of_older_files_lowers_epsilon(kind, marks, reader, folders, tmp_path, monkeypatch):
    for number, names in enumerate(SUBSETS if reader in ("ledger", "folder") else SUBSETS[::3]):
        path, epsilon = restored(folders, kind, names, tmp_path / str(number))
        if marks == "off":
            monkeypatch.setenv(VARIABLE, "off")
            if is_consistent(names, path):
                continue  # nothing distinguishes it from the folder that it was
        if reader == "ledger" and {"ledger.json", "releases.jsonl"} <= set(names):
            continue  # Ledger.load reads these two files only
        value = stated(reader, path)
        assert value is None or value >= epsilon * (1 - 1e-12), (names, value, epsilon)
