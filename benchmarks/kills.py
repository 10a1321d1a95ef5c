"""``dpmodel train`` is killed at random moments and resumed: what its files state, compared with what was released.

    PYTHONPATH=. python benchmarks/kills.py [--kills 200] [--seed 0] [--output docs/results/kills.md]

Each process runs the command ``dpmodel train``, with ``--resume`` after the first kill, and dies by SIGKILL: at a
random moment since its start, or since its first release. It writes a trace of its own: each event goes into a separate
file once its noise is drawn and before the weights change. After each kill, the files of the run folder are compared
with the trace of all processes so far; they may state more, never less. Copies of the folder are kept, and after each
kill random subsets of their files are restored into a further copy, which must be refused or state at least the trace.

A killed process loses what is in its memory, not what the system holds for the disk: this is not a power cut.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from machine import description

from dpmodel.cli.application import run
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.marks import VARIABLE
from dpmodel.training.step import PrivateStep
from monitors.errors import DPModelError
from monitors.events import event_from_dict
from monitors.ledger import Ledger
from monitors.spent import privacy_spent

DELTA, LIMIT = 1e-5, 5.0

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
        self.folder, self.trace, self.marks = RunFolder(base / "run"), base / "trace.jsonl", base / "marks"
        (base / "config.yaml").write_text(CONFIG)
        self.backups: list[Path] = []

    def started(self, *, resume: bool) -> int:
        """ID of a new process that trains in the folder."""
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            with open(os.devnull, "wb") as silence, (self.base / "errors").open("ab") as errors:
                os.dup2(silence.fileno(), 1)
                os.dup2(errors.fileno(), 2)
            _trace_into(self.trace)
            code = self.train(resume=resume)
        finally:
            os._exit(code)

    def train(self, *, resume: bool) -> int:
        """Exit code of ``dpmodel train`` in this process."""
        os.environ[VARIABLE] = str(self.marks)
        options = [part for setting in self.settings for part in ("--set", setting)]
        command = ["train", str(self.base / "config.yaml"), *options, "--output", str(self.folder.path), "--quiet"]
        return run([*command, *["--resume"] * resume])

    def released(self) -> Ledger:
        """The trace of all processes so far."""
        ledger = Ledger()
        for line in self.trace.read_bytes().splitlines() if self.trace.exists() else []:
            ledger.record(event_from_dict(json.loads(line)))
        return ledger

    def traced_bytes(self) -> int:
        """Size of the trace."""
        return self.trace.stat().st_size if self.trace.exists() else 0

    def understated(self) -> str | None:
        """The first file of the folder that states less than the trace, or a limit that does not hold."""
        released, folder = self.released(), self.folder
        if not folder.ledger.exists():
            return None if not released.total else "ledger.json is missing"
        os.environ[VARIABLE] = str(self.marks)
        stated = folder.read_ledger()
        epsilon, spent = (privacy_spent(ledger, DELTA).epsilon for ledger in (stated, released))
        if not stated.covers(released) or epsilon < spent:
            return f"ledger.json states {epsilon}, and {spent} was spent"
        report = json.loads(folder.report.read_text()) if folder.report.exists() else None
        if report is not None and report["epsilon"] < spent:
            return f"privacy_report.json states {report['epsilon']}, and {spent} was spent"
        if f"privacy.monitor.max_eps={LIMIT}" in self.settings and epsilon > LIMIT:
            return f"the limit {LIMIT} ended at {epsilon}"
        return None

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
        if self.trace.exists():
            shutil.copy(self.trace, copy.trace)
        shutil.copytree(self.marks, copy.marks)
        if resume and _exit_code(copy.started(resume=True)) != 0:
            return "refused"
        try:
            found = copy.understated()
        except DPModelError:
            return "refused"
        return "states at least what was spent" if found is None else f"WRONG: {found}"


def _trace_into(path: Path) -> None:
    descend = PrivateStep._descend

    def traced(self: PrivateStep, gradient: torch.Tensor, step: int) -> None:
        with path.open("ab") as stream:
            stream.write(json.dumps(self.plan.event(step).to_dict()).encode() + b"\n")
        descend(self, gradient, step)

    PrivateStep._descend = traced  # type: ignore[method-assign]


def _duration(base: Path, settings: list[str]) -> float:
    """Seconds of a training that is not killed."""
    training, begin = Training(base, settings), time.perf_counter()
    if _exit_code(training.started(resume=False)):
        raise RuntimeError((training.base / "errors").read_text())
    return time.perf_counter() - begin


def _exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _wait_for_release(training: Training, process: int) -> None:
    before = training.traced_bytes()
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while training.traced_bytes() == before and os.waitid(os.P_PID, process, ended) is None:
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


def measured(base: Path, kills: int, seed: int) -> dict[str, Counter[str]]:
    """Counts of outcomes by case."""
    draw, found = random.Random(seed), {name: Counter[str]() for name in CASES}
    warm = Training(base / "warm", CASES["constant noise"])
    warm.train(resume=False)  # the modules of a training are imported once, rather than in each process
    seconds, done = {name: _duration(base / f"full-{number}", CASES[name]) for number, name in enumerate(CASES)}, 0
    while done < kills:
        name = list(CASES)[sum(counts["trainings"] for counts in found.values()) % len(CASES)]
        counts = found[name]
        counts["trainings"] += 1
        training = Training(base / f"killed-{sum(each['trainings'] for each in found.values())}", CASES[name])
        for _ in range(draw.randint(3, 10)):
            before = training.traced_bytes()
            if not killed(training, draw, seconds[name]) or done == kills:
                break
            done += 1
            counts["kills"] += 1
            counts["after a release"] += training.traced_bytes() > before
            _judge(training, draw, counts)
            if not training.folder.state.exists():
                if training.traced_bytes():
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


COLUMNS = ("kills", "after a release", "wrong", "not completed", "refused", "states at least what was spent", "WRONG")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    conditions = description()
    base = Path(tempfile.mkdtemp(prefix="kills-"))
    found = measured(base, options.kills, options.seed)
    total = sum(found.values(), Counter[str]())
    right = total["kills"] - total["wrong"]
    lines = [
        "# Kills at random moments",
        "",
        f"Measured by `python benchmarks/kills.py --kills {options.kills} --seed {options.seed}`. {conditions}",
        "",
        f"**{right} of {total['kills']} kills** left files that state at least what was released, within the limit.",
        "",
        *__doc__.strip().split("\n\n")[2:],
        "",
        "| training | kills | of these after a release | understated | not completed | restored folders | refused "
        "| states enough | understated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, counts in [*found.items(), ("all", total)]:
        restored = sum(counts[column] for column in COLUMNS[4:])
        cells = [*(counts[column] for column in COLUMNS[:4]), restored, *(counts[column] for column in COLUMNS[4:])]
        lines.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if total["wrong"] or total["WRONG"] or total["not completed"]:
        raise SystemExit(f"see {base}")
    shutil.rmtree(base)


if __name__ == "__main__":
    main()
