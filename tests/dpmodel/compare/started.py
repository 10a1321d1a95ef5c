"""A command of real worker processes in a session of its own, with an independent trace of the steps that they take."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import yaml

from monitors import Ledger

ROOT = Path(__file__).parents[3]
#: Far more than the longest time that anything here takes on a busy machine.
PATIENCE = 300

#: Notes each step in a file that dpmodel does not know, when its release has happened. While there is a file "held", it
#: waits there, unless the command may pass.
TRACE = """
import os
import time
from dpmodel.callbacks import CALLBACKS, Callback

@CALLBACKS.register("Trace")
class Trace(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_step_end(self, run):
        handle = os.open(os.path.join(self.folder, str(os.getpid())), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, b".")
        os.close(handle)
        held = self.folder + "-held"
        while os.path.exists(held) and not os.path.exists(f"{held}-{os.getppid()}"):
            time.sleep(0.02)
"""

LONG = {
    "base": {
        "data": {"name": "synthetic", "num_train": 120, "num_test": 60, "num_classes": 3, "shape": [1, 4, 4]},
        "network": {"name": "linear"},
        "optimizer": {"name": "SGD", "lr": 0.5},
        "privacy": {"noise_multiplier": 1.0},
        "training": {"epochs": 5000, "batch_size": 20},
        "output": {"curve": False, "save_every_steps": 10},
    },
    "target": {"epsilon": 3.0, "accountant": "rdp"},
    "seeds": [1, 2],
    "variants": [{"name": "fixed"}, {"name": "tight", "set": {"privacy.norm_bound": 0.5}}],
}
SEARCH = {
    "base": {**LONG["base"], "privacy": {"target_epsilon": 3.0}},
    "search": {"optimizer.lr": {"values": [0.1, 0.2]}},
    "runs": 4,
    "charge": "all",
}
FILES = {"compare": LONG, "tune": SEARCH}


def members(session):
    """Processes of a session that have not ended."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            state, parent, _, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(sid) == session and state != "Z":
                found[int(entry.name)] = int(parent)
    return found


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def ledgers(out):
    return {path: Ledger.load(path) for path in out.rglob("ledger.json") if path.parent != out}


class Started:
    """A command with two workers in a session of its own, observed while both train."""

    line, options = (sys.executable, "-m", "dpmodel"), ()

    def __init__(self, tmp_path, command="compare", workers=0, epochs=5000, seeds=None):
        trace, self.traces, self.out = tmp_path / "step_trace.py", tmp_path / "traces", tmp_path / "out"
        values = json.loads(json.dumps(FILES[command]))
        self.traces.mkdir(exist_ok=True)
        trace.write_text(TRACE)
        values["base"]["training"]["epochs"] = epochs
        values |= {} if seeds is None else {"seeds": seeds}
        self.before = len(list(self.traces.iterdir()))
        values["base"] |= {
            "plugins": [str(trace)],
            "callbacks": [{"name": "Trace", "folder": str(self.traces)}],
            "performance": {"threads": 1, "workers": workers, **({"in_memory": False} if workers else {})},
        }
        path = tmp_path / f"{command}.yaml"
        path.write_text(yaml.safe_dump(values))
        self.process = subprocess.Popen(
            [*self.line, command, str(path), "-o", str(self.out), "--jobs", "2", "--quiet", *self.options],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in members(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()

    def new_traces(self):
        """Number of processes that have trained since this start."""
        return len(list(self.traces.iterdir())) - self.before

    def hold(self):
        """Let all trainings in this folder wait after their next step."""
        Path(f"{self.traces}-held").touch()
        return self

    def let_pass(self, *, all_of_them=False):
        """Let those of this command go on, or all of them."""
        held = f"{self.traces}-held"
        Path(held).unlink() if all_of_them else Path(f"{held}-{self.process.pid}").touch()

    def both_train(self):
        until(lambda: self.process.poll() is not None or self.new_traces() >= 2, "they do not train")
        assert self.process.poll() is None, self.process.stdout.read()
        return self

    def workers(self):
        """The worker processes: those that train."""
        return [int(path.name) for path in self.traces.iterdir() if int(path.name) in members(self.process.pid)]

    def all_end(self):
        """Wait for the end of all processes, and return what the command said."""
        until(lambda: not members(self.process.pid), f"still there: {members(self.process.pid)}")
        self.process.wait()
        return self.process.stdout.read()

    def traced(self):
        """Steps that all processes have taken, by their own trace."""
        return sum(path.stat().st_size for path in self.traces.iterdir())

    def require_charged(self):
        """Ledgers no longer grow, and state at least what was traced."""
        before, traced = ledgers(self.out), self.traced()
        assert sum(ledger.total for ledger in before.values()) >= traced
        time.sleep(0.3)
        assert (ledgers(self.out), self.traced()) == (before, traced)
