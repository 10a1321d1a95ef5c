"""Real processes and real signals: workers end with their parent, and every step that they took is charged."""

import json
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dpmodel.compare import make_comparison, run_comparison
from monitors.ledger import Ledger

from .started import LONG, PATIENCE, Started, ledgers, members, until

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the processes of a session")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number", "code"),
    [("compare", signal.SIGTERM, 143), ("tune", signal.SIGHUP, 129), ("compare", signal.SIGINT, 1)],
)
def test_the_first_signal_finishes_the_step_of_each_worker_and_saves(tmp_path, command, number, code):
    with Started(tmp_path, command) as started:
        started.both_train()
        started.process.send_signal(number)
        text = started.all_end()
        assert started.process.returncode == code
        assert "repeat the command to continue" in text
        assert "Traceback" not in text
        started.require_charged()
        found = ledgers(started.out)
        assert len(found) == 2
        # nothing was lost: as many steps are charged as were taken
        assert sum(ledger.total for ledger in found.values()) == started.traced()
        for path in found:
            status = json.loads((path.parent / "privacy_report.json").read_text())["status"]
            assert f"interrupted ({number.name})" in status


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "times", "whole_group"),
    [(signal.SIGTERM, 2, False), (signal.SIGINT, 3, True)],
)
def test_repeated_signals_end_everything_without_a_traceback(tmp_path, number, times, whole_group):
    with Started(tmp_path) as started:
        started.both_train()
        for _ in range(times):
            with suppress(ProcessLookupError):
                os.killpg(started.process.pid, number) if whole_group else started.process.send_signal(number)
            time.sleep(0.05)
        text = started.all_end()
        assert "Traceback" not in text
        started.require_charged()


@pytest.mark.slow
@pytest.mark.parametrize(("command", "workers"), [("compare", 2), ("tune", 0)])
def test_workers_and_their_children_end_when_their_parent_is_killed(tmp_path, command, workers):
    with Started(tmp_path, command, workers) as started:
        started.both_train()
        if workers:
            trainers = started.workers()
            until(lambda: set(trainers) & set(members(started.process.pid).values()), "they have no children")
        started.process.kill()
        started.all_end()
        started.require_charged()
        # each of the two is charged for at most its block, of 10 steps; on an idle machine for no more than it took
        assert sum(ledger.total for ledger in ledgers(started.out).values()) <= started.traced() + 20


@pytest.mark.slow
def test_a_killed_worker_fails_its_job_alone(tmp_path):
    with Started(tmp_path, workers=1) as started:
        started.both_train()
        victim = started.workers()[0]
        os.kill(victim, signal.SIGKILL)
        # a fresh worker takes the next job; the other one goes on
        until(lambda: started.new_traces() >= 3, "no fresh worker")
        assert started.process.poll() is None
        until(lambda: victim not in members(started.process.pid).values(), "its children live on")
        started.process.send_signal(signal.SIGTERM)
        text = started.all_end()
        assert "its process was killed (SIGKILL), perhaps for lack of memory" in text
        assert started.process.returncode == 143
        started.require_charged()
        assert len(ledgers(started.out)) == 3


@pytest.mark.slow
def test_a_comparison_started_right_after_a_kill_waits_for_the_last_step_of_its_orphans(tmp_path):
    with Started(tmp_path) as started:
        started.both_train()
        started.process.kill()
        with Started(tmp_path) as again:
            again.both_train()
            again.process.send_signal(signal.SIGTERM)
            text = again.all_end()
            assert "in use" not in text
            again.require_charged()
            assert not list(again.out.rglob("*previous*"))


@pytest.mark.slow
def test_a_second_command_in_the_same_folder_is_refused(tmp_path):
    with Started(tmp_path) as started:
        started.both_train()
        with Started(tmp_path) as second:
            text, _ = second.process.communicate(timeout=PATIENCE)
            assert second.process.returncode == 2
            assert f"in use by process {started.process.pid}; wait until it is done" in text


@pytest.mark.slow
def test_workers_draw_independent_noise(tmp_path):
    values = json.loads(json.dumps(LONG))
    values["base"]["training"]["epochs"] = 1
    values["seeds"] = [1]
    values["variants"] = [{"name": "one"}, {"name": "two"}]
    found = run_comparison(make_comparison(values), tmp_path, jobs=2)
    assert found.ok
    weights = [row.runs[0].folder.checkpoint.read_bytes() for row in found.result.variants]
    assert weights[0] != weights[1]


def _kill_at_random_instants(tmp_path, command):
    generator = random.Random(0)
    for _ in range(2):
        with Started(tmp_path, command, epochs=60) as started:
            until(lambda: started.new_traces() or started.process.poll() is not None, "they do not train")
            time.sleep(generator.uniform(0.0, 1.0))
            if generator.random() < 0.5:
                started.process.kill()
            else:
                with suppress(ProcessLookupError):
                    os.killpg(started.process.pid, signal.SIGKILL)
            started.all_end()
            started.require_charged()
    with Started(tmp_path, command, epochs=60) as started:
        text = started.all_end()
        assert started.process.returncode == 0, text
        started.require_charged()
    return started


@pytest.mark.slow
def test_kills_at_random_instants_leave_no_ledger_below_what_was_released(tmp_path):
    started = _kill_at_random_instants(tmp_path, "compare")
    # the same table as without a kill, and the lost steps in addition
    found = ledgers(started.out)
    assert len(found) == 4
    assert all(ledger.kept.total == 360 for ledger in found.values())
    lost = sum(ledger.lost.total for ledger in found.values())
    assert sum(ledger.total for ledger in found.values()) == 1440 + lost
    stated = json.loads((started.out / "comparison.json").read_text())
    assert stated["equal_epsilon"] is True
    assert stated["composed"]["trainings"] == 4
    assert stated["composed"]["lost_steps"] == lost
    assert stated["caveats"][0].startswith("comparison of 4 runs")


@pytest.mark.slow
def test_a_search_over_kills_at_random_instants_is_charged_for_all_that_was_released(tmp_path):
    started = _kill_at_random_instants(tmp_path, "tune")
    whole, runs = Ledger.load(started.out / "ledger.json"), Ledger().merge(*ledgers(started.out).values())
    assert runs.kept.total == 4 * 360
    assert whole.covers(runs)
    assert whole.total >= started.traced()
    assert json.loads((started.out / "tuning.json").read_text())["finished"] is True
