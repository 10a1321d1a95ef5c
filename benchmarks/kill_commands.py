"""The commands that train in several processes: ``dpmodel compare``, ``dpmodel tune`` and ``dpmodel train``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import yaml
from kill_starts import Copy, Process, run_command, run_ranks
from kill_statements import epsilon, json_understates, ledger_understates, run_understates, text_understates
from kill_trace import Trace

from dpmodel.compare.folder import ComparisonFolder, ledgers_below
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.marks import VARIABLE
from dpmodel.tuning.trials import CHARGED, TRIALS
from monitors.ledger import Ledger
from monitors.tuning import best_of_random

#: Of each training, in blocks of 10.
STEPS = 300
BASE = {
    "data": {"name": "synthetic", "shape": [1, 4, 4], "num_train": 120, "num_test": 40, "num_classes": 3},
    "network": "linear",
    "optimizer": {"name": "SGD", "lr": 0.5},
    "privacy": {"noise_multiplier": 1.5, "delta": 1e-5},
    "training": {"epochs": STEPS // 10, "batch_size": 12},
    "performance": {"device": "cpu", "threads": 1},
    "output": {"curve": False, "save_every_steps": 10},
}
_DECAYING = {"name": "AdaGaussian", "decay_policy": "Exp", "noise_decay_rate": 0.002}


class Command(ABC):
    """A command over all its starts, with its folder.

    Args:
        base: Folder for everything that belongs to it.
    """

    #: Whether the command continues if one of its training processes is killed.
    goes_on: ClassVar[bool] = True
    launcher: ClassVar[tuple[str, ...]] = ()

    def __init__(self, base: Path) -> None:
        base.mkdir()
        self.base, self.out, self.marks = base, base / "out", base / "marks"
        self.trace = Trace(base / "trace")
        (base / "settings.yaml").write_text(yaml.safe_dump(self.settings()), encoding="utf-8")

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """The contents of its file."""

    @abstractmethod
    def command(self) -> list[str]:
        """What follows ``dpmodel`` on the command line."""

    @abstractmethod
    def understated_in_all(self) -> str | None:
        """The first file about all trainings together that states less than was released."""

    def start(self, *, copied: bool) -> Process:
        """Start it, or start it again, with a session of its own; ``copied`` as a copy of this process."""
        environment = {**os.environ, **self.trace.environment(), VARIABLE: str(self.marks), "OMP_NUM_THREADS": "1"}
        command, output = self.command(), self.base / "output"
        if copied:
            return Copy(lambda: self.copied(command), environment, self.base, output)
        with output.open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", *self.launcher, "dpmodel", *command],
                cwd=self.base,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def finished(self) -> bool:
        """Whether the command must not be started again."""
        return False

    def copied(self, command: list[str]) -> int:
        """What a copy of this process does, and its exit code."""
        return run_command(command)

    def understated(self) -> str | None:
        """The first file that states less than was released."""
        os.environ[VARIABLE] = str(self.marks)
        for run, released in self.trace.released().items():
            found = self._understated_in_run(Path(run), released)
            if found is not None:
                return found
        return self.understated_in_all()

    def _understated_in_run(self, path: Path, released: Ledger) -> str | None:
        earlier = [RunFolder(folder) for folder in path.parent.glob(f"{path.name}.previous-*")]
        if not earlier:
            return run_understates(RunFolder(path), released)
        # A training that could not be resumed was moved aside; which one released what, the trace does not say.
        merged = Ledger()
        for folder in [*earlier, RunFolder(path)]:
            if folder.ledger.exists():
                merged.extend(folder.read_ledger())
        return ledger_understates(path, merged, released, epsilon(released))


class Comparison(Command):
    """``dpmodel compare --jobs 2``: two variants, each with two seeds."""

    def settings(self) -> dict[str, object]:
        """Constant and decaying noise."""
        return {
            "base": {**BASE, "privacy": {"noise_multiplier": 1.5}},
            "target": {"epsilon": 3.0, "delta": 1e-5, "accountant": "rdp"},
            "seeds": [1, 2],
            "variants": [{"name": "fixed"}, {"name": "decaying", "set": {"privacy.noise": _DECAYING}}],
        }

    def command(self) -> list[str]:
        """The same for each start."""
        return ["compare", "settings.yaml", "-o", str(self.out), "--jobs", "2", "--quiet"]

    def understated_in_all(self) -> str | None:
        """The results of the comparison, and the ledgers that the next results come from."""
        released, folder = self.trace.total(), ComparisonFolder(self.out)
        spent = epsilon(released)
        return (
            ledger_understates(folder.runs, Ledger().merge(*folder.ledgers().values()), released, spent)
            or json_understates(folder.json, spent, "composed", "epsilon")
            or text_understates(folder.markdown, spent)
            or text_understates(folder.html, spent)
        )


class Search(Command):
    """``dpmodel tune --jobs 2``."""

    charge: ClassVar[str]
    runs: ClassVar[int] = 3

    def settings(self) -> dict[str, object]:
        """A search for the learning rate."""
        return {
            "base": {**BASE, "privacy": {"target_epsilon": 3.0, "delta": 1e-5}},
            "search": {"optimizer.lr": {"low": 0.1, "high": 0.5}},
            "runs": self.runs,
            "charge": self.charge,
            "accountant": "rdp",
        }

    def command(self) -> list[str]:
        """The same for each start."""
        return ["tune", "settings.yaml", "-o", str(self.out), "--jobs", "2", "--quiet"]

    def least(self) -> Ledger:
        """What the search has to state at least, by its trace."""
        return self.trace.total()

    def understated_in_all(self) -> str | None:
        """The ledgers and reports of the search."""
        released, least = self.trace.total(), self.least()
        if not released.total:
            return None
        spent = epsilon(least)
        for path in (self.out / "ledger.json", *[self.out / CHARGED] * (self.charge != "none")):
            wrong = ledger_understates(path, Ledger.load(path), least, spent)
            if wrong is not None:
                return wrong
        runs = Ledger().merge(*ledgers_below(self.out / TRIALS).values())
        return (
            ledger_understates(self.out / TRIALS, runs, released, epsilon(released))
            or json_understates(self.out / "tuning.json", spent, "privacy", "epsilon")
            or text_understates(self.out / "tuning.md", spent)
        )


class SearchChargedInFull(Search):
    """Every run is charged."""

    charge = "all"


class SearchOfRandomLength(Search):
    """The best of a random number of runs is charged, and in addition what was released beyond the plan of a run."""

    charge = "random"
    runs = 2

    def least(self) -> Ledger:
        """The charge of the best run, and the steps of each run beyond those of its plan."""
        released = self.trace.released()
        if not released:
            return Ledger()
        ((event, _),) = {row[0]: row for ledger in released.values() for row in ledger}.values()
        least = best_of_random(Ledger().record(event, STEPS), float(self.runs), "geometric")
        for ledger in released.values():
            if ledger.total > STEPS:
                least.record(event, ledger.total - STEPS)
        return least


class SearchNotCharged(Search):
    """The best run alone is charged."""

    charge = "none"

    def least(self) -> Ledger:
        """What the best run has released; if no report names it, what the run that released least has."""
        released, report = self.trace.released(), self.out / "tuning.json"
        best = json.loads(report.read_text(encoding="utf-8"))["best"] if report.exists() else None
        if best is not None:
            return released[best["run"]]
        return min(released.values(), key=epsilon, default=Ledger())


class TwoProcesses(Command):
    """``torchrun --nproc_per_node=2 -m dpmodel train``: both processes share each batch."""

    goes_on = False
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    noise: ClassVar[dict[str, object]] = {"noise": _DECAYING}

    def settings(self) -> dict[str, object]:
        """One training."""
        return {**BASE, "privacy": {"noise_multiplier": 1.5, "delta": 1e-5, **self.noise}}

    def command(self) -> list[str]:
        """Resume the training if its state was saved; a folder in which nothing was released is removed."""
        resume = RunFolder(self.out).state.exists()
        if not resume and not self.trace.size():
            shutil.rmtree(self.out, ignore_errors=True)
        return ["train", "settings.yaml", "-o", str(self.out), "--quiet", *["--resume"] * resume]

    @property
    def finished(self) -> bool:
        """Whether the training has ended."""
        return RunFolder(self.out).ended() is not None

    def copied(self, command: list[str]) -> int:
        """Two ranks."""
        return run_ranks(command)

    def understated_in_all(self) -> str | None:
        """There is one training."""
        return None


class TwoProcessesAdaptive(TwoProcesses):
    """The same, with adaptive clipping."""

    noise: ClassVar[dict[str, object]] = {"clip": {"name": "Gaussian"}}


COMMANDS: dict[str, type[Command]] = {
    "`compare --jobs 2`": Comparison,
    "`tune --jobs 2`, charge `random`": SearchOfRandomLength,
    "`tune --jobs 2`, charge `all`": SearchChargedInFull,
    "`tune --jobs 2`, charge `none`": SearchNotCharged,
    "`train` in two processes, decaying noise": TwoProcesses,
    "`train` in two processes, adaptive clipping": TwoProcessesAdaptive,
}
