"""Run folders are resumed from Python, from the command line, and after a kill."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from dpmodel import Callback
from dpmodel.callbacks import Silence
from dpmodel.config import load_config, make_config
from dpmodel.planning.training_plan import plan_training
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.train import train_from_config
from dpmodel.saving.lock import LOCK_NAME
from monitors.errors import CheckpointError, ConfigError
from monitors.ledger import Ledger
from monitors.spent import privacy_spent

from ..journey import SETTINGS as TINY
from ..power_cut import PowerCut

ROOT = Path(__file__).parents[3]


def test_a_regression_is_trained_from_a_file_of_floats(tmp_path):
    x = np.random.default_rng(0).normal(size=(400, 3))
    y = x @ [1.0, -2.0, 0.5]
    np.savez(tmp_path / "own.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    changes = {
        "data": {"name": "npz", "root": str(tmp_path / "own.npz")},
        "loss": "mse",
        "privacy": {"noise_multiplier": 0.5, "norm_bound": 2.0},
        "training": {"epochs": 6, "batch_size": 50, "metrics": ["mae"]},
    }
    result = train_from_config(make_config({**TINY, **changes}), tmp_path / "run", callbacks=[Silence()])
    assert result.metrics["mae"] < 0.5 * abs(y[300:]).mean()


def cut_off(folder, step=17, **changes):
    config = make_config({**TINY, **changes})
    with pytest.raises(KeyboardInterrupt):
        train_from_config(config, folder, callbacks=[Silence(), PowerCut(step)])
    return config


def test_a_resumed_run_has_the_planned_ledger_and_its_report_states_what_was_lost(tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = cut_off(folder.path)
    multiplier = plan_training(config, 60).noise_multiplier
    result = train_from_config(config, folder.path, resume=True, callbacks=[Silence()])
    planned = plan_training(config, 60)
    ledger, report = Ledger.load(folder.ledger), read_epsilon(folder)
    assert ledger.kept == planned.ledger()
    assert result.report.without_lost.epsilon == planned.privacy_spent().epsilon <= 8.0
    assert report["epsilon_without_lost_steps"] == result.report.without_lost.epsilon
    assert report["mechanism"]["initial_noise_multiplier"] == multiplier
    assert report["lost_steps"] == result.report.lost_steps == ledger.lost.total == 4
    assert report["epsilon"] == privacy_spent(ledger, 1e-5).epsilon > report["epsilon_without_lost_steps"]
    assert report["epsilon"] == result.history.column("epsilon")[-1]
    assert report["target_epsilon"] == 8.0
    assert "Steps that were lost" in folder.statement.read_text()
    assert [row.epoch for row in result.history] == [1, 2, 3]
    # a file that only an unfinished training needs is removed
    assert not folder.state.exists()
    assert not (folder.path / LOCK_NAME).exists()


def read_epsilon(folder):
    return json.loads(folder.report.read_text())


@pytest.mark.slow
def test_the_resolved_configuration_resumes_the_run_too(tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = cut_off(folder.path)
    result = train_from_config(load_config(folder.config), folder.path, resume=True, callbacks=[Silence()])
    assert Ledger.load(folder.ledger).kept == plan_training(config, 60).ledger()
    assert result.report.target_epsilon == 8.0


def test_a_report_without_lost_steps_does_not_mention_them(tmp_path):
    result = train_from_config(make_config(TINY), tmp_path / "run", callbacks=[Silence()])
    assert (result.report.lost_steps, result.report.without_lost) == (0, None)
    report = read_epsilon(result.folder)
    assert report["epsilon_without_lost_steps"] == report["epsilon"]
    assert "lost" not in result.folder.statement.read_text()
    assert "lost" not in result.folder.ledger.read_text()
    assert not result.folder.state.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("privacy.norm_bound=0.3", r"privacy\.norm_bound is 0\.3 here and 1\.0 in the state"),
        ("optimizer.lr=0.4", r"optimizer\.lr is 0\.4 here and 0\.5 in the state"),
        ("privacy.target_epsilon=7", r"privacy\.target_epsilon is 7\.0 here and 8\.0 in the state"),
        ("data.num_train=66", r"data\.num_train is 66 here and 60"),
        ("training.epochs=4", r"training\.epochs is 4 here and 3"),
        ("network={name: mlp, hidden: [3]}", r"network\.name is 'mlp' here and 'linear'"),
        ("privacy.noise={name: Gaussian, seed: 4}", r"privacy\.noise\.seed is 4 here and not stated in the state"),
    ],
)
@pytest.mark.sample(7)
def test_a_different_configuration_is_refused_and_the_field_is_named(change, message, tmp_path):
    folder = RunFolder(tmp_path / "run")
    cut_off(folder.path)
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(CheckpointError, match=message):
        train_from_config(make_config(TINY, [change]), folder.path, resume=True, callbacks=[Silence()])
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ("training.epochs=4", "training.epochs is 4 here and 3 in the state"),
        ("privacy.norm_bound=0.3", "privacy.norm_bound is 0.3 here and 1.0 in the state"),
        ("privacy.target_epsilon=7", "privacy.target_epsilon is 7.0 here and 8.0 in the state"),
    ],
)
def test_a_setting_that_differs_is_named_once_with_the_remedy(change, settings, tmp_path):
    folder = RunFolder(tmp_path / "run")
    cut_off(folder.path)
    with pytest.raises(CheckpointError) as caught:
        train_from_config(make_config(TINY, [change]), folder.path, resume=True, callbacks=[Silence()])
    remedy = "Resume with the settings of the run, or start again in a different folder (--output)"
    assert str(caught.value) == f"{folder.state} belongs to a different training: {settings}. {remedy}"


def test_the_folder_of_a_training_that_never_began_is_removed(tmp_path):
    def refuse(training, folder):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        train_from_config(make_config(TINY), tmp_path / "run", announce=refuse)
    assert not (tmp_path / "run").exists()


def test_speed_and_output_may_change(tmp_path):
    config = cut_off(tmp_path / "run")
    changed = make_config(TINY, ["performance.engine=loop", "output.save_every_steps=3"])
    train_from_config(changed, tmp_path / "run", resume=True, callbacks=[Silence()])
    assert Ledger.load(tmp_path / "run" / "ledger.json").kept == plan_training(config, 60).ledger()


def test_a_finished_run_a_missing_one_and_a_contradiction_are_refused(tmp_path):
    config = make_config(TINY)
    train_from_config(config, tmp_path / "run", callbacks=[Silence()])
    with pytest.raises(ConfigError, match=r"has already ended \(finished\)"):
        train_from_config(config, tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="does not exist"):
        train_from_config(config, tmp_path / "other", resume=True)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="give one of them"):
        train_from_config(config, tmp_path / "run", resume=True, force=True)


def test_a_run_that_keeps_no_state_cannot_be_resumed_and_says_why(tmp_path):
    output = {"curve": False, "save_every_steps": None}
    config = cut_off(tmp_path / "run", output=output)
    with pytest.raises(CheckpointError, match="save_every_steps is null"):
        train_from_config(config, tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="is not empty"):
        train_from_config(config, tmp_path / "run")


@pytest.mark.slow
def test_a_folder_in_use_by_another_process_is_refused_with_the_process_id(tmp_path):
    config = cut_off(tmp_path / "run")
    code = f"""
        import sys, time
        from dpmodel.saving.lock import FolderLock
        with FolderLock({str(tmp_path / "run")!r}):
            print("held", flush=True)
            time.sleep(60)
    """
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert holder.stdout.readline().strip() == b"held"
        for options in ({"resume": True}, {"force": True}, {}):
            with pytest.raises(ConfigError, match=f"in use by process {holder.pid}"):
                train_from_config(config, tmp_path / "run", **options)
    finally:
        holder.kill()
        holder.wait()
    # the system releases the lock of a killed process
    train_from_config(config, tmp_path / "run", resume=True, callbacks=[Silence()])


KILLED = """
    import os, sys, time
    from dpmodel.callbacks import Callback
    from dpmodel.config import load_config
    from dpmodel.runs.train import train_from_config

    class Reported(Callback):
        def on_train_step_end(self, run):
            os.write(1, f"{run.step}\\n".encode())
            time.sleep(0.01)

        def on_train_begin(self, run):
            run.printer = lambda text: None

    train_from_config(load_config(sys.argv[1]), sys.argv[2], resume=len(sys.argv) > 3, callbacks=[Reported()])
"""


def killed_at(step, config, folder, *, resume):
    """Train in another process and kill it soon after ``step``; return the numbers of the steps that it had done."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(config), str(folder.path)]
    process = subprocess.Popen(
        command + ["--resume"] * resume,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    seen = []
    for line in process.stdout:
        seen.append(int(line))
        if seen[-1] == step:
            time.sleep(0.013)
            process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    return seen


@pytest.mark.slow
def test_a_kill_at_any_moment_is_charged_and_the_resumed_run_spends_the_plan(tmp_path):
    config, folder = tmp_path / "tiny.yaml", RunFolder(tmp_path / "run")
    config.write_text(yaml.safe_dump({**TINY, "training": {"epochs": 9, "batch_size": 6}}))
    first = killed_at(23, config, folder, resume=False)
    second = killed_at(51, config, folder, resume=True)
    # at most the running block of 4 steps is repeated
    assert first[-1] - 4 < second[0] <= first[-1] + 1
    result = train_from_config(
        load_config(config), folder.path, resume=True, callbacks=[Silence(), counting := Count()]
    )
    assert second[-1] - 4 < counting.steps[0] <= second[-1] + 1
    planned = plan_training(load_config(config), 60)
    ledger = Ledger.load(folder.ledger)
    assert ledger.kept == planned.ledger()
    assert result.report.without_lost.epsilon == planned.privacy_spent().epsilon
    assert ledger.total >= len(first) + len(second) + len(counting.steps)
    assert ledger.lost.total <= 2 * 4
    assert result.report.spent.epsilon == privacy_spent(ledger, 1e-5).epsilon > result.report.without_lost.epsilon


class Count(Callback):
    """Remembers the steps that were done."""

    def __init__(self):
        self.steps = []

    def on_train_step_end(self, run):
        self.steps.append(run.step)


def test_the_command_resumes_an_interrupted_run(tmp_path, capsys):
    from dpmodel.cli.application import run

    config, out = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(TINY))
    cut_off(out)
    assert run(["train", str(config), "--output", str(out), "--quiet"]) == 2
    assert "--resume continues it" in capsys.readouterr().err
    assert run(["train", str(config), "--output", str(out), "--quiet", "--resume", "--force"]) == 2
    capsys.readouterr()
    assert run(["train", str(config), "--output", str(out), "--quiet", "--resume"]) == 0
    assert "4, charged; epsilon without them" in capsys.readouterr().out
    assert run(["eval", str(out), "--json"]) == 0
    assert "released and lost" in " ".join(json.loads(capsys.readouterr().out)["privacy"]["notes"])


@pytest.mark.slow
def test_a_run_that_chose_its_bands_resumes_with_them_and_spends_its_target(tmp_path):
    noise = {"sampling": "cyclic_poisson", "noise": {"name": "BandedMF", "bands": "auto"}}
    privacy = {**TINY["privacy"], "noise_multiplier": None, "target_epsilon": 3.0, **noise}
    config = cut_off(tmp_path / "run", privacy=privacy)
    chosen = plan_training(config, 60).config.privacy.noise.options["bands"]
    train_from_config(config, tmp_path / "run", resume=True, callbacks=[Silence()])
    ledger = Ledger.load(RunFolder(tmp_path / "run").ledger)
    assert chosen > 1
    assert {event.bands for event, _ in ledger} == {chosen}
    assert 2.9 < privacy_spent(ledger.kept, config.privacy.delta).epsilon <= 3.0
    assert privacy_spent(ledger, config.privacy.delta).epsilon > 3.0  # the lost steps are rounds of their own
