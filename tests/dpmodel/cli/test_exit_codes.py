import os
import signal

import pytest
import yaml

from dpmodel.callbacks import CALLBACKS, Callback
from dpmodel.cli.application import run

BASE = {
    "data": {"name": "synthetic", "num_train": 120, "num_test": 60, "num_classes": 3, "shape": [1, 4, 4]},
    "network": {"name": "linear"},
    "optimizer": {"name": "SGD", "lr": 0.5},
    "privacy": {"target_epsilon": 3.0, "accountant": "rdp"},
    "training": {"epochs": 1, "batch_size": 20},
    "output": {"curve": False},
}
FILES = {
    "train": lambda base: base,
    "compare": lambda base: {
        "base": base,
        "target": {"epsilon": 3.0, "accountant": "rdp"},
        "seeds": [1],
        "variants": [{"name": "fixed"}, {"name": "tight", "set": {"privacy.norm_bound": 0.5}}],
    },
    "tune": lambda base: {"base": base, "search": {"optimizer.lr": {"values": [0.1, 0.2]}}, "runs": 2, "charge": "all"},
}


@CALLBACKS.register("SignalAtStep2")
class SignalAtStep2(Callback):
    def __init__(self, number):
        self.number = number

    def on_train_step_end(self, run):
        if run.step == 2:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 1)])
@pytest.mark.parametrize("command", FILES)
@pytest.mark.sample(9)
def test_the_exit_code_names_the_signal_that_interrupted_a_command(tmp_path, command, number, code):
    path = tmp_path / "file.yaml"
    base = {**BASE, "callbacks": [{"name": "SignalAtStep2", "number": int(number)}]}
    path.write_text(yaml.safe_dump(FILES[command](base)))
    jobs = [] if command == "train" else ["-j", "1"]
    assert run([command, str(path), "-o", str(tmp_path / "out"), "-q", *jobs]) == code
