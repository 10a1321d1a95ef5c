"""Kills ``dpmodel train`` in one process at random moments, resumes it, and restores files of older copies."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from kill_hook.sitecustomize import trace_steps
from kill_statements import epsilon, run_understates
from kill_trace import Trace

from dpmodel.cli.application import run
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.marks import VARIABLE
from monitors.errors import DPModelError

LIMIT = 5.0

#: 40 steps in blocks of 5.
CONFIG = """\
data: {name: synthetic, shape: [1, 4, 4], num_train: 120, num_test: 40, num_classes: 3}
network: linear
optimizer: {name: SGD, lr: 0.5}
privacy: {noise_multiplier: 1.5, delta: 1e-5}
training: {epochs: 4, batch_size: 12}
output: {curve: false, save_every_steps: 5}
"""

_DECAYING = "privacy.noise={name: AdaGaussian, decay_policy: Exp, noise_decay_rate: 0.01}"

#: Name, and the settings of a training.
CASES = {
    "constant noise": [],
    "decaying noise": [_DECAYING],
    "decaying noise, max_eps 5": [_DECAYING, f"privacy.monitor.max_eps={LIMIT}"],
    "shuffled batches, adaptive clipping": ["privacy.sampling=shuffle", "privacy.clip={name: Gaussian}"],
}

#: The files that a backup may bring back one by one.
FILES = ("ledger.json", "releases.jsonl", "training_state.safetensors", "privacy_report.json", "checkpoint.safetensors")


class Training:
    """One run folder, over all its processes.

    Args:
        base: Folder for everything that belongs to the training.
        settings: Its settings.
    """

    def __init__(self, base: Path, settings: list[str]) -> None:
        base.mkdir()
        self.base, self.settings = base, settings
        self.folder, self.trace, self.marks = RunFolder(base / "run"), Trace(base / "trace"), base / "marks"
        (base / "config.yaml").write_text(CONFIG)
        self.backups: list[Path] = []

    def started(self, *, resume: bool) -> int:
        """ID of a new process that trains in the folder."""
        variables = self.trace.environment()
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            with open(os.devnull, "wb") as silence, (self.base / "errors").open("ab") as errors:
                os.dup2(silence.fileno(), 1)
                os.dup2(errors.fileno(), 2)
            os.environ.update(variables)
            trace_steps(sys.modules["dpmodel.training.step"])
            code = self.train(resume=resume)
        finally:
            os._exit(code)

    def train(self, *, resume: bool) -> int:
        """Exit code of ``dpmodel train`` in this process."""
        os.environ[VARIABLE] = str(self.marks)
        options = [part for setting in self.settings for part in ("--set", setting)]
        command = ["train", str(self.base / "config.yaml"), *options, "--output", str(self.folder.path), "--quiet"]
        return run([*command, *["--resume"] * resume])

    def understated(self) -> str | None:
        """The first file of the folder that states less than the trace, or a limit that does not hold."""
        released = self.trace.total()
        os.environ[VARIABLE] = str(self.marks)
        found = run_understates(self.folder, released)
        if found is None and f"privacy.monitor.max_eps={LIMIT}" in self.settings and released.total:
            stated = epsilon(self.folder.read_ledger())
            return f"the limit {LIMIT} ended at {stated}" if stated > LIMIT else None
        return found

    def back_up(self) -> None:
        """Keep a copy of the folder."""
        self.backups.append(self.base / f"backup-{len(self.backups)}")
        shutil.copytree(self.folder.path, self.backups[-1])

    def restored(self, draw: random.Random, *, resume: bool) -> str:
        """What a copy of the folder does in which some files are those of an older copy."""
        copy = Training(Path(tempfile.mkdtemp(dir=self.base)) / "copy", self.settings)
        shutil.copytree(self.folder.path, copy.folder.path)
        older = draw.choice(self.backups)
        for name in draw.sample(FILES, draw.randint(1, len(FILES))):
            (copy.folder.path / name).unlink(missing_ok=True)
            if (older / name).exists():
                shutil.copy(older / name, copy.folder.path / name)
        shutil.copytree(self.trace.folder, copy.trace.folder, dirs_exist_ok=True)
        copy.trace.starts = self.trace.starts
        shutil.copytree(self.marks, copy.marks)
        if resume and _exit_code(copy.started(resume=True)) != 0:
            return "refused"
        try:
            found = copy.understated()
        except DPModelError:
            return "refused"
        return "states at least what was spent" if found is None else f"WRONG: {found}"


def _duration(base: Path, settings: list[str]) -> float:
    """Seconds of a training that is not killed."""
    training, begin = Training(base, settings), time.perf_counter()
    if _exit_code(training.started(resume=False)):
        raise RuntimeError((training.base / "errors").read_text())
    return time.perf_counter() - begin


def _exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _wait_for_release(training: Training, process: int) -> None:
    before = training.trace.size()
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while training.trace.size() == before and os.waitid(os.P_PID, process, ended) is None:
        time.sleep(0.005)


def killed(training: Training, draw: random.Random, seconds: float) -> bool:
    """Whether a process of the training died by SIGKILL, at a random moment, rather than ended by itself."""
    process = training.started(resume=training.folder.state.exists())
    if draw.random() < 0.6:
        _wait_for_release(training, process)
        seconds *= 0.6
    time.sleep(draw.uniform(0, seconds))
    os.kill(process, signal.SIGKILL)
    return _exit_code(process) == -signal.SIGKILL


def warm_up(base: Path) -> None:
    """Import the modules of a training, once rather than in each process."""
    Training(base, CASES["constant noise"]).train(resume=False)


def measured(base: Path, kills: int, draw: random.Random) -> dict[str, Counter[str]]:
    """Counts of outcomes by case."""
    found = {name: Counter[str]() for name in CASES}
    warm_up(base / "warm")
    seconds, done = {name: _duration(base / f"full-{number}", CASES[name]) for number, name in enumerate(CASES)}, 0
    while done < kills:
        name = list(CASES)[sum(counts["trainings"] for counts in found.values()) % len(CASES)]
        counts = found[name]
        counts["trainings"] += 1
        training = Training(base / f"killed-{sum(each['trainings'] for each in found.values())}", CASES[name])
        for _ in range(draw.randint(3, 10)):
            before = training.trace.size()
            if not killed(training, draw, seconds[name]) or done == kills:
                break
            done += 1
            counts["kills"] += 1
            counts["after a release"] += training.trace.size() > before
            _judge(training, draw, counts)
            if not training.folder.state.exists():
                if training.trace.size():
                    break  # it had finished; a new training would not belong to this trace
                shutil.rmtree(training.folder.path, ignore_errors=True)
                continue
            training.back_up()
        if training.folder.state.exists() and training.folder.ended() is None:
            code = _exit_code(training.started(resume=True))
            counts["not completed"] += code != 0
            if code:
                print((training.base / "errors").read_text(), file=sys.stderr)
        _judge(training, draw, counts)
        print(f"{done} kills: {name}: {dict(counts)}", flush=True)
    return found


def _judge(training: Training, draw: random.Random, counts: Counter[str]) -> None:
    try:
        wrong = training.understated()
    except DPModelError as error:
        wrong = f"refused: {error}"
    if wrong is not None:
        counts["wrong"] += 1
        print(f"WRONG in {training.base}: {wrong}", file=sys.stderr, flush=True)
    if training.backups and training.folder.state.exists():
        outcome = training.restored(draw, resume=draw.random() < 0.3)
        counts[outcome.partition(":")[0]] += 1
        if outcome.startswith("WRONG"):
            print(outcome, file=sys.stderr, flush=True)
