"""Two run folders to damage, and what must hold for whoever opens a damaged one."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from dpmodel.cli.evaluate import _progress, _stopped
from dpmodel.config import make_config
from dpmodel.config.schema import Config
from dpmodel.figures.curve import curve_of_run
from dpmodel.runs.evaluate import evaluate_run
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.train import train_from_config
from dpmodel.saving.checkpoint import load_checkpoint
from dpmodel.saving.marks import VARIABLE
from dpmodel.saving.state import read_state
from dpmodel.training.history import History
from monitors.errors import DPModelError
from monitors.journal import ReleaseJournal
from monitors.ledger import Ledger
from monitors.spent import privacy_spent

from ..power_cut import PowerCut
from .mutations import copied, damage, tree

KILLED_AT = 9

#: What a command turns into one line and an exit code.
EXPECTED = (DPModelError, OSError)

#: A training resumes whatever became of the other files.
READ_TO_RESUME = ("training_state.safetensors", "releases.jsonl", "ledger.json", "privacy_report.json")

COMMON = {
    "data": {"name": "synthetic", "shape": [1, 3, 3], "num_train": 40, "num_test": 10, "num_classes": 2},
    "network": "linear",
    "performance": {"device": "cpu", "threads": 1},
    "output": {"curve": False, "save_every_steps": 4},
}
KINDS = {
    "adaptive": {
        **COMMON,
        "optimizer": {"name": "Adam", "lr": 0.1, "schedule": {"name": "LinearLR", "end_factor": 0.1}},
        "privacy": {"noise_multiplier": 1.1, "norm_bound": 1.0, "clip": "Gaussian"},
        "training": {"epochs": 4, "batch_size": 10},
        "callbacks": ["WeightAveraging", {"name": "EarlyStopping", "patience": 50}],
    },
    "shuffled": {
        **COMMON,
        "optimizer": {"name": "Momentum", "lr": 0.1},
        "privacy": {"noise_multiplier": 1.3, "norm_bound": 1.0, "sampling": "shuffle", "accountant": "pld"},
        "training": {"epochs": 4, "batch_size": 10},
    },
}


class Witness:
    """Records what a process releases, independently of the ledger."""

    def __init__(self) -> None:
        self.events: list = []

    def on_train_step_begin(self, run) -> None:
        """The step that begins now is released."""
        self.events.append(run.event(run.step))


@dataclass
class Folders:
    """An interrupted training and a finished one.

    Args:
        config: Their configuration.
        interrupted: Its folder, and what it released.
        finished: Its folder, and what it released.
        marks: The marks of both, as their user has them. In every second case, the folder is somebody else's.
    """

    config: Config
    interrupted: Path
    finished: Path
    released: list
    released_in_all: list
    marks: Path

    @classmethod
    def made(cls, kind: str, place: Path) -> Folders:
        """Train both into ``place``."""
        config = make_config(KINDS[kind])
        first, second = Witness(), Witness()
        torch.set_num_threads(1)
        with contextlib.redirect_stdout(io.StringIO()), mock.patch.dict(os.environ, {VARIABLE: str(place / "marks")}):
            with contextlib.suppress(KeyboardInterrupt):
                train_from_config(config, place / "interrupted", callbacks=[first, PowerCut(KILLED_AT)])
            train_from_config(config, place / "finished", callbacks=[second])
        events = first.events, second.events
        return cls(config, place / "interrupted", place / "finished", *events, place / "marks")

    def check_reading(self, number: int, place: Path) -> None:
        """Damage the finished folder and read, evaluate and plot it."""
        folder = RunFolder(copied(self.finished, place / "read"))
        own = self._set_marks(number, place)
        if number % 4 == 3:
            folder.config.unlink()  # as fit(output=...) leaves a folder
        what, signed = damage(folder.path, number)
        before = tree(folder.path)
        with _about(what):
            digest = outcome(lambda: Ledger.load(folder.ledger).digest(), ValueError)
            outcome(folder.ended)
            outcome(lambda: load_checkpoint(folder.checkpoint))
            outcome(lambda: History.from_csv(folder.history, 1e-5), ValueError)
            outcome(lambda: _stopped(_progress(folder.path)))
            outcome(lambda: curve_of_run(folder.path))
            found = outcome(lambda: evaluate_run(folder.path))
            if not signed:
                assert digest in (None, Ledger.load(self.finished / "ledger.json").digest())
            if found is not None and ((own and self._same_training(folder.path, self.finished)) or not signed):
                self._covered(found.spent, self.released_in_all)
            assert tree(folder.path) == before, "the folder was changed"

    def check_resuming(self, number: int, place: Path) -> None:
        """Damage the interrupted folder, read it, and resume it."""
        folder = RunFolder(copied(self.interrupted, place / "resume"))
        own = self._set_marks(number, place)
        what, signed = damage(folder.path, number, READ_TO_RESUME)
        # A whole line less at the end of the journal is noticed by the mark alone.
        shorter = "releases.jsonl" in what or "forged" in what
        before = tree(folder.path)
        with _about(what):
            outcome(lambda: read_state(folder.state))
            stated = outcome(lambda: Ledger.load(folder.ledger), ValueError)
            if stated is not None and not signed and not shorter:
                self._covered(privacy_spent(stated, 1e-5, "rdp"), self.released)
            same = own and self._same_training(folder.path, self.interrupted)
            witness = Witness()
            resumed = outcome(lambda: train_from_config(self.config, folder.path, resume=True, callbacks=[witness]))
            assert resumed or not witness.events, f"refused after {len(witness.events)} releases"
            if resumed is None:
                assert tree(folder.path) == before, "the folder was changed"
                return
            if (shorter and not same) or (signed and "ledger.json" in what):
                return
            after = Ledger.load(folder.ledger)
            self._covered(privacy_spent(after, 1e-5, "rdp"), [*self.released, *witness.events])
            if not signed:
                assert all(value.isfinite().all() for value in load_checkpoint(folder.checkpoint).values())

    def _set_marks(self, number: int, place: Path) -> bool:
        own = number // 4 % 2 == 0
        os.environ[VARIABLE] = str(copied(self.marks, place / "marks")) if own else "off"
        return own

    def _same_training(self, folder: Path, origin: Path) -> bool:
        """Whether the journal still names the training: under a different ID, it is somebody else's."""
        known, found = (outcome(lambda path=path: ReleaseJournal(path / "releases.jsonl")) for path in (origin, folder))
        return found is not None and found.training == known.training

    def _covered(self, spent, events: list) -> None:
        truth = Ledger()
        for event in events:
            truth.record(event)
        least = privacy_spent(truth, spent.delta, spent.accountant).epsilon
        assert spent.epsilon >= least * (1 - 1e-9), f"epsilon {spent.epsilon} is stated, {least} was spent"


@contextlib.contextmanager
def _about(what: str):
    try:
        yield
    except BaseException as error:
        error.args = (f"{what}: {error}",)
        raise


def outcome(action, *documented):
    """The result of ``action``; None if it was refused by a one-line error."""
    try:
        return action()
    except (*EXPECTED, *documented) as error:
        text = str(error)
        # A configuration with several faults lists them one by one.
        assert " faults in " in text or len(text.splitlines()) == 1, f"not one line: {text[:200]!r}"
        assert len(text) < 4000, f"an error of {len(text)} characters: {text[:200]!r}"
        return None
