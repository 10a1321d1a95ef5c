"""``torchrun -m dpmodel``: one run folder, one writer, and the ledger of one process."""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpmodel.cli import main
from dpmodel.cli.application import run
from dpmodel.distributed.launch import local_rank
from monitors import Ledger

from .launched import ROOT

CONFIG = """\
data: {name: synthetic, shape: [1, 4, 4], num_train: 60, num_test: 20, num_classes: 3}
network: linear
optimizer: {name: SGD, lr: 0.5}
privacy: {target_epsilon: 5, delta: 1.0e-5}
training: {epochs: 3, batch_size: 20}
performance: {device: cpu}
output: {curve: false, save_every_steps: 2}
"""


def _torchrun(folder, *arguments):
    (folder / "tiny.yaml").write_text(CONFIG)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(
        [*launcher, "-m", "dpmodel", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _output(process, limit=200):
    try:
        return process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        raise AssertionError("torchrun hangs:\n" + process.communicate(timeout=60)[0]) from None


@pytest.fixture
def in_torchrun(monkeypatch):
    """The variables that torchrun sets for rank 1."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")


def test_a_process_of_torchrun_ends_without_the_shutdown_of_the_interpreter(in_torchrun, monkeypatch):
    codes = []
    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: codes.append("exit handlers"))
    monkeypatch.setattr(os, "_exit", codes.append)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert codes == ["exit handlers", 0]


def test_a_process_ends_with_the_torchrun_that_started_it_and_with_no_other_launcher():
    # The launcher has a child of its own, which outlives it: the rank.
    rank = "from dpmodel.distributed.launcher import end_with_torchrun as e; import os, time; e(); os.write(1, b'1')"
    launcher = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {rank + '; time.sleep(60)'!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.read(1)\n"
        "print(child.pid, flush=True)\n"
        "os._exit(0)\n"
    )

    def survivor(**variables):
        environment = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
        started = subprocess.run(
            [sys.executable, "-c", launcher],
            env={**environment, "PYTHONPATH": str(ROOT), **variables},
            stdout=subprocess.PIPE,
            check=True,
        )
        return int(started.stdout)

    with_torchrun, by_itself = survivor(TORCHELASTIC_RUN_ID="1"), survivor()
    try:
        end = time.monotonic() + 60
        while _alive(with_torchrun):
            assert time.monotonic() < end, "it lives on"
            time.sleep(0.05)
        assert _alive(by_itself)
    finally:
        os.kill(by_itself, signal.SIGKILL)


def _alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")  # nobody may wait for an orphan in a container
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_other_commands_refuse_torchrun(in_torchrun, capsys):
    assert run(["compare", "compare.yaml"]) == 2
    assert "rank 1: error: torchrun has started 2 processes" in capsys.readouterr().err
    assert local_rank() == 1


@pytest.mark.slow
def test_two_processes_of_torchrun_write_one_folder_like_one_process(tmp_path):
    process = _torchrun(tmp_path, "train", "tiny.yaml", "-o", "two")
    output = _output(process)
    assert process.returncode == 0, output
    assert output.count("Training finished") == 1
    assert run(["train", str(tmp_path / "tiny.yaml"), "-o", str(tmp_path / "one"), "-q"]) == 0
    one, two = (Ledger.load(tmp_path / name / "ledger.json") for name in ("one", "two"))
    assert one.digest() == two.digest()
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_wrong_configuration_ends_all_ranks(tmp_path):
    process = _torchrun(tmp_path, "train", "tiny.yaml", "--set", "training.batch_size=1000")
    output = _output(process)
    assert process.returncode != 0
    assert "training.batch_size" in output


def _await_second_state(folder, process):
    state = folder / "training_state.safetensors"
    begun, end = 0.0, time.monotonic() + 200
    while not begun or state.stat().st_mtime == begun:
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(_output(process, 5))
        begun = begun or (state.stat().st_mtime if state.exists() else 0.0)
        time.sleep(0.05)


@pytest.mark.slow
def test_the_ranks_of_a_killed_torchrun_save_and_end(tmp_path):
    longer = ["-o", "run"]
    for setting in ("training.epochs=200", "training.batch_size=1", "output.save_every_steps=50"):
        longer += ["--set", setting]
    process = _torchrun(tmp_path, "train", "tiny.yaml", *longer)
    _await_second_state(tmp_path / "run", process)
    process.kill()
    output = _output(process)  # ends when no process holds it open any more
    assert "interrupted (SIGTERM)" in output
    taken = Ledger.load(tmp_path / "run" / "ledger.json")
    assert 50 <= taken.total < 12000
    assert taken.lost.total == 0
    report = json.loads((tmp_path / "run" / "privacy_report.json").read_text())
    assert report["ledger_digest"] == taken.digest()


@pytest.mark.slow
def test_a_signal_stops_all_ranks_and_one_process_resumes(tmp_path, monkeypatch):
    longer = ["-o", "run"]
    for setting in ("training.epochs=20", "training.batch_size=1", "output.save_every_steps=50"):
        longer += ["--set", setting]
    process = _torchrun(tmp_path, "train", "tiny.yaml", *longer)
    _await_second_state(tmp_path / "run", process)
    process.send_signal(signal.SIGTERM)
    output = _output(process)
    assert "interrupted (SIGTERM)" in output
    taken = Ledger.load(tmp_path / "run" / "ledger.json")
    assert 50 <= taken.total < 1200
    monkeypatch.chdir(tmp_path)
    assert run(["train", "tiny.yaml", *longer, "--resume", "-q"]) == 0
    after = Ledger.load(tmp_path / "run" / "ledger.json")
    assert (after.total, after.lost.total) == (1200, 0)
