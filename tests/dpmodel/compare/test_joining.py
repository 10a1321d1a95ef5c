"""A comparison whose runs are trained by the process that leads it and by others that join it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dpmodel.cli.application import run
from dpmodel.compare import join_comparison, make_comparison, run_comparison
from dpmodel.compare.equal_epsilon import calibrate_variants
from dpmodel.compare.folder import ComparisonFolder
from dpmodel.compare.jobs import Job
from dpmodel.compare.plan import Plan
from dpmodel.compare.pool import run_jobs
from dpmodel.compare.runner import NullWatcher
from dpmodel.config import make_config
from dpmodel.data.fingerprint import Fingerprint
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.lock import FolderLock
from monitors import Ledger
from monitors.errors import ConfigError
from monitors.journal import ReleaseJournal

from .started import PATIENCE, Started, ledgers, until


class Labels(NullWatcher):
    def __init__(self):
        self.labels = []

    def began(self, job):
        self.labels.append(job.label)


class Leading:
    """A folder that is led by nobody but the test: it holds the lock and offers a plan."""

    def __init__(self, values, path):
        self.comparison, self.lock = make_comparison(values), FolderLock(path)
        self.folder = ComparisonFolder(path)

    def __enter__(self):
        self.lock.acquire()
        variants = calibrate_variants(self.comparison, self.folder.multipliers)
        self.plan = Plan.of(self.folder.plan, variants, self.comparison.definition.seeds)
        self.lock.write(self.plan.path, self.plan.text)
        return self

    def __exit__(self, *error):
        self.lock.release()


def begun(folder):
    """How many trainings began in each run folder, by the journals."""
    journals = folder.rglob("releases.jsonl")
    return {str(path.parent.relative_to(folder)): path.read_text().count('"begun"') for path in journals}


def test_without_a_leading_process_nothing_is_joined_and_nothing_is_written(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"no process leads the comparison in .* start one without --join first"):
        join_comparison(make_comparison(tiny), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    # a plan of a killed process, whose lock file is still there
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / ".lock").write_text("4711")
    with pytest.raises(ConfigError, match="does not pass its lock"):
        join_comparison(make_comparison(tiny), tmp_path)


@pytest.mark.slow
def test_a_joined_process_trains_all_that_nobody_holds_and_the_leading_one_collects_it(tiny, tmp_path):
    watching = Labels()
    with Leading(tiny, tmp_path) as leading, FolderLock(tmp_path / "runs/fixed/seed-2"):
        found = join_comparison(leading.comparison, tmp_path, jobs=1, watcher=watching)
        assert watching.labels == ["fixed, seed 1", "Exp strong, seed 1", "Exp strong, seed 2"]
        assert (found.result, found.missing, found.faults, found.interrupted) == (None, 1, (), False)
        assert not list(tmp_path.glob("comparison.*"))
    collected = run_comparison(leading.comparison, tmp_path, jobs=1)
    assert (collected.ok, collected.reused, collected.result.trainings) == (True, 3, 4)
    assert not (tmp_path / "plan.json").exists()


def test_nothing_is_taken_after_the_leading_process_has_ended(tiny, tmp_path):
    with Leading(tiny, tmp_path) as leading:

        class Ends(Labels):
            def began(self, job):
                super().began(job)
                if len(self.labels) == 2:
                    leading.lock.release()

        watching = Ends()
        found = join_comparison(leading.comparison, tmp_path, jobs=1, watcher=watching)
        assert [outcome.job.label for outcome in found.outcomes] == ["fixed, seed 1"]
    assert list(begun(tmp_path / "runs")) == ["fixed/seed-1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["seeds"].append(3), r"the seeds of this process .* differ: \[1, 2, 3\] here, \[1, 2\]"),
        (lambda values: values["base"]["optimizer"].update(lr=0.1), "'fixed' is not among those .* has calibrated"),
        (lambda values: values["variants"][0].update(name="steady"), "the variants of this process"),
    ],
)
def test_a_process_that_would_train_something_else_is_refused(tiny, tmp_path, change, message):
    with Leading(json.loads(json.dumps(tiny)), tmp_path):
        change(tiny)
        with pytest.raises(ConfigError, match=message):
            join_comparison(make_comparison(tiny), tmp_path, jobs=1)
    assert not (tmp_path / "runs").exists()


def test_other_data_and_a_different_version_are_refused(tiny, tmp_path, monkeypatch):
    with Leading(tiny, tmp_path) as leading:
        with monkeypatch.context() as patched:
            patched.setattr("dpmodel.compare.equal_epsilon.Fingerprint.of", lambda data: Fingerprint(60, "0" * 64))
            with pytest.raises(ConfigError, match=r"the test data of this process .*60 examples, SHA-256 0000"):
                join_comparison(leading.comparison, tmp_path, jobs=1)
        monkeypatch.setattr("dpmodel.__version__", "0.0.1")
        with pytest.raises(ConfigError, match=r"the versions of this process .* \"dpmodel 0\.0\.1, torch"):
            join_comparison(leading.comparison, tmp_path, jobs=1)


def test_however_many_take_the_same_runs_each_is_trained_once(tiny, tmp_path, monkeypatch):
    trained = []

    def train(config, directory, **options):
        assert options["lock"].handle() is not None
        trained.append(directory.name)
        time.sleep(0.002)
        (directory / "done").touch()
        return SimpleNamespace(interrupted=False, signal=None)

    monkeypatch.setattr("dpmodel.runs.train.train_from_config", train)
    monkeypatch.setattr("dpmodel.compare.jobs.is_finished", lambda folder, config: (folder.path / "done").exists())
    monkeypatch.setattr("dpmodel.compare.jobs.can_resume", lambda folder, config: False)
    monkeypatch.setattr(RunFolder, "ended", lambda folder: "finished")
    settings = make_config(tiny["base"]).to_yaml()
    jobs = [Job(n, "fixed", n, 6, str(tmp_path / f"seed-{n}"), str(tmp_path / "begun"), settings) for n in range(20)]
    outcomes = []

    def take(number):
        outcomes.extend(run_jobs(jobs[number:] + jobs[:number], 1, NullWatcher(), wait=number % 2 == 0))

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(trained) == sorted(Path(job.directory).name for job in jobs)
    assert all(outcome.finished for outcome in outcomes)
    assert sum(not outcome.reused for outcome in outcomes) == 20


def test_the_order_of_the_variants_makes_no_difference(tiny, tmp_path):
    with Leading(json.loads(json.dumps(tiny)), tmp_path) as leading:
        tiny["baseline"], tiny["variants"] = "fixed", tiny["variants"][::-1]
        variants = calibrate_variants(make_comparison(tiny), leading.folder.multipliers, solve=False)
        plan = Plan.of(leading.folder.plan, variants, [1, 2])
        plan.require_offered()
        assert plan.is_offered()


def test_a_damaged_lock_is_a_fault_of_its_run_alone(tiny, tmp_path):
    tiny["seeds"] = [1]
    (tmp_path / "runs/fixed/seed-1/.lock").mkdir(parents=True)
    found = run_comparison(make_comparison(tiny), tmp_path, jobs=1)
    assert [(outcome.job.label, ".lock: " in outcome.fault) for outcome in found.faults] == [("fixed, seed 1", True)]
    assert [row.name for row in found.result.variants] == ["Exp strong"]


def test_a_folder_that_the_code_of_a_user_finds_in_use_is_a_fault_and_not_tried_again(tiny, tmp_path, monkeypatch):
    def other(*arguments, **options):
        FolderLock(tmp_path / "other").acquire()

    tiny["seeds"] = [1]
    monkeypatch.setattr("dpmodel.runs.train.train_from_config", other)
    with FolderLock(tmp_path / "other"):
        found = run_comparison(make_comparison(tiny), tmp_path / "compared", jobs=1)
    assert ["in use by process" in outcome.fault for outcome in found.faults] == [True, True]


@pytest.mark.slow
def test_a_process_waits_for_the_plan_while_the_leading_one_prepares(tiny, tmp_path):
    tiny["seeds"] = [1]
    with Leading(tiny, tmp_path) as leading:
        leading.plan.path.unlink()
        timer = threading.Timer(0.5, lambda: leading.lock.write(leading.plan.path, leading.plan.text))
        timer.start()
        assert join_comparison(leading.comparison, tmp_path, jobs=1).missing == 0
        timer.join()


#: A process that joins and kills itself: its arguments are the definition, the folder and the step.
JOIN_AND_DIE = """
import json, os, signal, sys

from dpmodel.compare import join_comparison, make_comparison
from dpmodel.compare.runner import NullWatcher

class Dies(NullWatcher):
    def stepped(self, job, step):
        if step == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

join_comparison(make_comparison(json.loads(sys.argv[1])), sys.argv[2], jobs=1, watcher=Dies())
"""


@pytest.mark.slow
def test_the_run_of_a_killed_joined_process_is_resumed_and_its_lost_steps_are_charged_once(tiny, tmp_path):
    tiny["seeds"] = [1]
    tiny["base"]["output"]["save_every_steps"] = 2
    with Leading(tiny, tmp_path) as leading:
        command = [sys.executable, "-c", JOIN_AND_DIE, json.dumps(tiny), str(tmp_path), "5"]
        joined = subprocess.run(command, timeout=PATIENCE, capture_output=True, text=True, check=False)
        assert joined.returncode == -signal.SIGKILL, joined.stderr
    assert begun(tmp_path / "runs") == {"fixed/seed-1": 1}
    assert Ledger.load(tmp_path / "runs/fixed/seed-1/ledger.json").total == 6
    found = run_comparison(leading.comparison, tmp_path, jobs=1)
    assert (found.ok, found.result.trainings, found.result.lost_steps) == (True, 2, 2)
    assert Ledger.load(tmp_path / "runs/fixed/seed-1/ledger.json").total == 8
    assert begun(tmp_path / "runs") == {"fixed/seed-1": 2, "exp-strong/seed-1": 1}


@pytest.mark.slow
def test_a_run_resumes_on_a_machine_without_its_mark_and_then_again_on_the_first_one(tiny, tmp_path, monkeypatch):
    class Interrupts(NullWatcher):
        def __init__(self, at):
            self.at = at

        def stepped(self, job, step):
            if step == self.at:
                os.kill(os.getpid(), signal.SIGINT)

    tiny["seeds"] = [1]
    comparison = make_comparison(tiny)
    for machine, step in (("one", 2), ("two", 4), ("one", None)):
        monkeypatch.setenv("DPMODEL_MARKS", str(tmp_path / machine))
        found = run_comparison(comparison, tmp_path / "shared", jobs=1, watcher=Interrupts(step))
        assert found.interrupted is (step is not None)
    assert (found.ok, found.result.trainings, found.result.lost_steps) == (True, 2, 0)
    folder = RunFolder(tmp_path / "shared/runs/fixed/seed-1")
    assert folder.read_ledger().total == 6
    # each machine has its own mark of what it saw; that of the second ends earlier
    training = ReleaseJournal(folder.journal).training
    lines = {name: json.loads((tmp_path / name / f"{training}.json").read_text())["lines"] for name in ("one", "two")}
    assert lines["two"] < lines["one"] == len(ReleaseJournal(folder.journal))


def test_the_command_joins_and_refuses_options_of_the_first_command(tiny, tmp_path, write, capsys):
    tiny["seeds"] = [1]
    command = ["compare", str(write(tiny)), "-o", str(tmp_path / "out"), "--join"]
    assert run([*command, "--docs", "x"]) == 2
    assert "--join trains runs only" in capsys.readouterr().err
    with Leading(tiny, tmp_path / "out"):
        assert run([*command, "-j", "1", "--quiet"]) == 0
        expected = f"trained 2 runs; the command that was joined writes the results into {tmp_path / 'out'}\n"
        assert capsys.readouterr().out == expected
        assert run([*command, "--json"]) == 0
        again = json.loads(capsys.readouterr().out)
        assert (again["trained"], again["missing"], again["faults"]) == (0, 0, {})
    assert run(command) == 2
    assert "no process leads the comparison" in capsys.readouterr().err


class Joined(Started):
    """A process that joins the command that was started in the same folder."""

    options = ("--join",)


def states(out):
    return json.loads((out / "comparison.json").read_text())


@pytest.mark.slow
def test_two_commands_train_each_run_once_and_state_the_table_of_one(tmp_path):
    with Started(tmp_path, epochs=10, seeds=[1, 2, 3, 4]).hold() as first:
        first.both_train()
        with Joined(tmp_path, epochs=10, seeds=[1, 2, 3, 4]) as joined:
            joined.both_train()
            first.let_pass(all_of_them=True)
            text = joined.all_end()
            assert joined.process.returncode == 0, text
            assert "trained " in text
            text = first.all_end()
            assert first.process.returncode == 0, text
            first.require_charged()
        assert begun(first.out / "runs") == {f"{name}/seed-{n}": 1 for name in ("fixed", "tight") for n in (1, 2, 3, 4)}
        assert sum(ledger.total for ledger in ledgers(first.out).values()) == first.traced() == 8 * 60
    stated = states(first.out)
    assert stated["equal_epsilon"] is True
    assert (stated["composed"]["trainings"], stated["composed"]["lost_steps"]) == (8, 0)
    values = yaml.safe_load((tmp_path / "compare.yaml").read_text())
    values["base"]["callbacks"], values["base"]["plugins"] = [], []
    alone = run_comparison(make_comparison(values), tmp_path / "alone", jobs=1).result.to_dict()
    assert stated["composed"] == alone["composed"]
    for one, other in zip(stated["variants"], alone["variants"], strict=True):
        for same in ("name", "epsilon", "least_epsilon", "initial_noise_multiplier", "last_noise_multiplier"):
            assert one[same] == other[same]
        assert [(run["seed"], run["epsilon"], run["status"]) for run in one["runs"]] == [
            (run["seed"], run["epsilon"], run["status"]) for run in other["runs"]
        ]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_runs_of_a_joined_process_that_ends_are_taken_over(tmp_path, number):
    with Started(tmp_path, epochs=30).hold() as first:
        first.both_train()
        with Joined(tmp_path, epochs=30) as joined:
            joined.both_train()
            end_by(joined, number)
        first.let_pass()
        text = first.all_end()
        assert first.process.returncode == 0, text
        first.require_charged()
    assert begun(first.out / "runs") == {
        "fixed/seed-1": 1,
        "tight/seed-1": 1,
        "fixed/seed-2": 2,
        "tight/seed-2": 2,
    }
    require_whole(first.out, 180)
    assert (states(first.out)["composed"]["lost_steps"] == 0) is (number == signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_joined_process_finishes_its_runs_after_the_leading_one_has_ended_and_nothing_is_understated(
    tmp_path, number
):
    with Started(tmp_path, epochs=30).hold() as first:
        first.both_train()
        with Joined(tmp_path, epochs=30) as joined:
            joined.both_train()
            text = end_by(first, number)
            # the total would be too low as soon as the other process takes its next step
            assert not list(first.out.glob("comparison.*"))
            assert ("is still trained by process" in text) is (number == signal.SIGTERM)
            with Started(tmp_path, epochs=30) as again:
                again.let_pass()
                until(lambda: again.new_traces() >= 2, "the runs of the first process are not resumed")
                assert again.process.poll() is None
                joined.let_pass()
                text = again.all_end()
                assert again.process.returncode == 0, text
                text = joined.all_end()
                assert joined.process.returncode == 0, text
                assert "trained 2 runs" in text
                again.require_charged()
    require_whole(first.out, 180)


def end_by(started, number):
    """Send a signal to a command whose runs are held, let them pass, and return its output."""
    started.process.send_signal(number)
    time.sleep(2)
    started.let_pass()
    text = started.all_end()
    assert started.process.returncode == (143 if number == signal.SIGTERM else -number), text
    return text


def require_whole(out, steps):
    """Every run is finished and all that was lost with killed processes is stated."""
    stated, found = states(out), ledgers(out)
    assert all(ledger.kept.total == steps for ledger in found.values())
    assert (stated["equal_epsilon"], stated["composed"]["trainings"]) == (True, len(found))
    assert stated["composed"]["lost_steps"] == sum(ledger.lost.total for ledger in found.values()) <= 20
