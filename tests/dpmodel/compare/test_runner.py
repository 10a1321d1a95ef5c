import os
import shutil
import signal
import stat

import pytest

from dpmodel.compare import make_comparison, run_comparison
from dpmodel.compare.begun import BegunMark, vanished_below
from dpmodel.compare.equal_epsilon import calibrate_variants
from dpmodel.compare.jobs import Job, JobOutcome, train_job
from dpmodel.compare.runner import NullWatcher
from dpmodel.saving.lock import FolderLock
from monitors import Ledger, RDPAccountant
from monitors.errors import CheckpointError, ConfigError, DataError
from monitors.journal import ReleaseJournal


class Watching(NullWatcher):
    """Records the labels of the trainings, and interrupts the first step of one of them."""

    def __init__(self, interrupt_at=None):
        self.labels, self.reused, self.interrupt_at = [], None, interrupt_at

    def training(self, jobs, reused):
        self.reused = reused

    def began(self, job):
        self.labels.append(job.label)

    def stepped(self, job, step):
        if len(self.labels) == self.interrupt_at and step == 1:
            os.kill(os.getpid(), signal.SIGINT)


def test_every_run_spends_the_target_by_its_own_ledger(carried_out):
    assert carried_out.ok
    assert carried_out.missing == 0
    accountant = RDPAccountant()
    for ledger in carried_out.folder.ledgers().values():
        assert 3.0 * 0.999 <= accountant.epsilon(ledger, 1e-5) <= 3.0


def test_runs_of_one_seed_share_their_initial_weights_and_not_their_noise(carried_out):
    rows = {row.name: {run.seed: run for run in row.runs} for row in carried_out.result.variants}
    assert set(rows["fixed"]) == set(rows["Exp strong"]) == {1, 2}
    texts = [rows[name][1].folder.config.read_text() for name in ("fixed", "Exp strong")]
    assert all("seed: 1\n" in text and "sampling_seed: null" in text for text in texts)
    assert rows["fixed"][1].folder.checkpoint.read_bytes() != rows["Exp strong"][1].folder.checkpoint.read_bytes()


@pytest.mark.slow
def test_an_interrupted_comparison_keeps_finished_runs_and_resumes_when_repeated(tiny, tmp_path):
    comparison = make_comparison(tiny)
    broken_off = run_comparison(comparison, tmp_path, jobs=1, watcher=Watching(interrupt_at=2))
    assert broken_off.interrupted
    assert not broken_off.ok
    assert broken_off.missing == 3
    assert broken_off.result.caveats[0].startswith("NOT COMPLETE: 3 runs")
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/fixed/seed-1/*")}

    watching = Watching()
    broken_off.folder.markdown.write_text("the total of the trainings so far")
    resumed = run_comparison(comparison, tmp_path, jobs=1, watcher=watching)
    assert resumed.ok
    assert not resumed.folder.markdown.exists()
    assert watching.reused == resumed.reused == 1
    assert watching.labels == ["Exp strong, seed 1", "fixed, seed 2", "Exp strong, seed 2"]
    assert {path: path.stat().st_mtime_ns for path in done} == done

    # the interrupted training resumed from its last step: nothing was lost or repeated
    assert not list(tmp_path.glob("runs/*/*.previous-*"))
    assert (resumed.result.trainings, resumed.result.lost_steps) == (4, 0)
    assert resumed.result.equal


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_save_and_lost_steps_count_in_the_total(tiny, tmp_path):
    class PowerCut(NullWatcher):
        def stepped(self, job, step):
            if step == 5:
                raise KeyboardInterrupt

    tiny["base"]["output"]["save_every_steps"] = 2
    tiny["seeds"] = [1]
    comparison = make_comparison(tiny)
    assert not run_comparison(comparison, tmp_path, jobs=1, watcher=PowerCut()).ok
    # steps 5 and 6 had begun; the saved state is that of step 4
    steps = []

    class Watching(NullWatcher):
        def stepped(self, job, step):
            steps.append((job.variant, step))

    resumed = run_comparison(comparison, tmp_path, jobs=1, watcher=Watching())
    assert resumed.ok
    assert steps[:2] == [("fixed", 5), ("fixed", 6)]
    assert Ledger.load(tmp_path / "runs/fixed/seed-1/ledger.json").lost.total == resumed.result.lost_steps == 2
    assert resumed.result.equal
    assert "including 2 steps lost with killed processes" in " ".join(resumed.result.caveats)
    whole = Ledger().merge(*resumed.folder.ledgers().values())
    assert whole.total == 14
    assert resumed.result.composed.epsilon == pytest.approx(RDPAccountant().epsilon(whole, 1e-5))
    assert resumed.result.to_dict()["composed"]["lost_steps"] == 2


@pytest.mark.slow
def test_a_run_without_a_saved_state_is_repeated_and_its_releases_count(tiny, tmp_path):
    tiny["base"]["output"]["save_every_steps"] = None
    comparison = make_comparison(tiny)
    run_comparison(comparison, tmp_path, jobs=1, watcher=Watching(interrupt_at=2))
    resumed = run_comparison(comparison, tmp_path, jobs=1)
    assert resumed.ok
    aside = tmp_path / "runs/exp-strong/seed-1.previous-1/ledger.json"
    assert Ledger.load(aside).total == 1
    assert resumed.result.trainings == 5
    whole = RDPAccountant().epsilon(Ledger().merge(*resumed.folder.ledgers().values()), 1e-5)
    assert resumed.result.composed.epsilon == pytest.approx(whole)
    assert whole > resumed.result.variants[0].epsilon


def test_a_comparison_that_a_different_process_runs_is_refused_before_any_training(tiny, tmp_path):
    watching = Watching()
    with FolderLock(tmp_path), pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        run_comparison(make_comparison(tiny), tmp_path, jobs=1, watcher=watching)
    assert watching.labels == []
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.slow
def test_a_run_that_a_different_process_holds_comes_last(tiny, tmp_path):
    held = FolderLock(tmp_path / "runs/fixed/seed-1")

    class Releases(Watching):
        def ended(self, outcome):
            if outcome.job.label == "Exp strong, seed 1":
                released.append(True)

        def held(self, job, holder):
            assert released
            self.labels.append(f"{job.label}: {holder}")
            held.release()

    released = []
    tiny["seeds"], watching = [1], Releases()
    held.acquire()
    found = run_comparison(make_comparison(tiny), tmp_path, jobs=1, watcher=watching)
    assert watching.labels == ["Exp strong, seed 1", f"fixed, seed 1: process {os.getpid()}", "fixed, seed 1"]
    assert found.ok


@pytest.mark.slow
def test_no_results_are_stated_while_a_different_process_holds_a_run(tiny, tmp_path, monkeypatch):
    def interrupted(seconds):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("dpmodel.compare.pool.time.sleep", interrupted)
    tiny["seeds"] = [1]
    with FolderLock(tmp_path / "runs/fixed/seed-1"):
        found = run_comparison(make_comparison(tiny), tmp_path, jobs=1)
    assert found.result is None
    assert not found.ok
    assert (found.missing, found.signal, found.interrupted) == (1, signal.SIGTERM, True)
    assert found.busy == {tmp_path / "runs/fixed/seed-1": f"process {os.getpid()}"}
    # a run of other settings counts in the total as well
    with FolderLock(tmp_path / "runs/further"):
        assert run_comparison(make_comparison(tiny), tmp_path, jobs=1).result is None
    assert run_comparison(make_comparison(tiny), tmp_path, jobs=1).ok


def test_a_damaged_state_of_a_run_is_a_named_fault_and_spends_nothing(tiny, tmp_path):
    tiny["seeds"] = [1]
    comparison = make_comparison(tiny)
    run_comparison(comparison, tmp_path, jobs=1, watcher=Watching(interrupt_at=1))
    state = tmp_path / "runs/fixed/seed-1/training_state.safetensors"
    state.write_bytes(state.read_bytes()[:-7])
    found = run_comparison(comparison, tmp_path, jobs=1)
    assert "training_state.safetensors" in found.faults[0].fault
    assert Ledger.load(tmp_path / "runs/fixed/seed-1/ledger.json").total == 1


def test_finished_runs_are_reused_unless_their_settings_changed(tiny, tmp_path):
    tiny["seeds"] = [1]
    run_comparison(make_comparison(tiny), tmp_path, jobs=1)
    again = Watching()
    assert run_comparison(make_comparison(tiny), tmp_path, jobs=1, watcher=again).reused == 2
    assert again.labels == []
    tiny["base"]["performance"] = {"threads": 1}
    assert run_comparison(make_comparison(tiny), tmp_path, jobs=1, watcher=again).reused == 2
    tiny["variants"][1]["set"]["privacy.norm_bound"] = 0.5
    assert run_comparison(make_comparison(tiny), tmp_path, jobs=1, watcher=again).reused == 1
    assert again.labels == ["Exp strong, seed 1"]
    assert (tmp_path / "runs/exp-strong/seed-1.previous-1").is_dir()


def test_a_run_folder_whose_report_does_not_match_its_ledger_is_refused(tiny, tmp_path):
    tiny["seeds"] = [1]
    found = run_comparison(make_comparison(tiny), tmp_path, jobs=1)
    fixed, other = (row.runs[0].folder for row in found.result.variants)
    shutil.copy(other.ledger, fixed.ledger)
    with pytest.raises(
        DataError, match=r"seed-1/ledger\.json: releases\.jsonl beside it is .* of a different training"
    ):
        run_comparison(make_comparison(tiny), tmp_path, jobs=1)


def test_a_reason_to_stop_interrupts_a_job_before_its_next_step(tiny, tmp_path):
    config = calibrate_variants(make_comparison(tiny), None)[0].config(1)
    job = Job(
        0,
        "fixed",
        1,
        6,
        str(tmp_path / "runs/a"),
        BegunMark(tmp_path / "begun/a", tmp_path / "begun"),
        config.to_yaml(),
    )
    steps = []
    reason = lambda: "interrupted (SIGTERM)" if len(steps) == 2 else None  # noqa: E731
    outcome = train_job(job, lambda number, step: steps.append(step), reason)
    assert (outcome.interrupted, outcome.fault, steps) == (True, None, [1, 2])
    assert Ledger.load(tmp_path / "runs/a/ledger.json").total == 2
    training = ReleaseJournal(tmp_path / "runs/a/releases.jsonl").training
    assert list(job.begun.trainings()) == [training]
    assert job.begun.planned(training).total == 6
    resumed = train_job(job, lambda number, step: steps.append(step))
    assert (resumed.interrupted, resumed.fault, steps) == (False, None, [1, 2, 3, 4, 5, 6])
    again = train_job(job, lambda number, step: pytest.fail("it was trained again"))
    assert again == JobOutcome(job, reused=True)
    assert list(job.begun.trainings()) == [training]
    assert vanished_below(tmp_path / "runs", tmp_path / "begun") == []


@pytest.mark.slow
def test_a_copy_of_a_run_folder_that_was_made_before_it_was_resumed_is_not_counted_twice(tiny, tmp_path):
    class Interrupting(Watching):
        def stepped(self, job, step):
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    tiny["seeds"] = [1]
    assert run_comparison(make_comparison(tiny), tmp_path, jobs=1, watcher=Interrupting()).missing == 2
    shutil.copytree(tmp_path / "runs/fixed/seed-1", tmp_path / "runs/fixed/seed-1.bak")
    assert run_comparison(make_comparison(tiny), tmp_path, jobs=1).result.trainings == 2


def test_a_training_that_fails_before_its_first_release_is_not_charged(tiny, tmp_path, monkeypatch):
    config = calibrate_variants(make_comparison(tiny), None)[0].config(1)
    job = Job(
        0,
        "fixed",
        1,
        6,
        str(tmp_path / "runs/a"),
        BegunMark(tmp_path / "begun/a", tmp_path / "begun"),
        config.to_yaml(),
    )
    monkeypatch.setattr(ReleaseJournal, "announce", lambda *arguments: (_ for _ in ()).throw(OSError("no disk")))
    assert train_job(job, lambda number, step: None).fault == "OSError: no disk"
    assert not (tmp_path / "runs/a").exists()
    assert vanished_below(tmp_path / "runs", tmp_path / "begun") == []


def test_a_failed_training_is_named_and_the_others_continue(tiny, tmp_path, monkeypatch):
    tiny["seeds"] = [1]
    from dpmodel.runs import train as job

    carry_out = job.train_from_config

    def faulty(config, *args, **options):
        if config.privacy.noise.name == "AdaGaussian":
            raise OSError("the disk is full")
        return carry_out(config, *args, **options)

    monkeypatch.setattr(job, "train_from_config", faulty)
    found = run_comparison(make_comparison(tiny), tmp_path, jobs=1)
    assert [outcome.fault for outcome in found.faults] == ["OSError: the disk is full"]
    assert not found.ok
    assert [row.name for row in found.result.variants] == ["fixed"]


@pytest.mark.slow
def test_a_training_that_stops_early_is_reported_as_unequal(tiny, tmp_path):
    tiny["seeds"] = [1]
    tiny["base"]["training"]["epochs"] = 4
    tiny["base"]["optimizer"]["lr"] = 1e-9
    early = {"name": "EarlyStopping", "monitor": "accuracy", "patience": 1}
    tiny["variants"][1]["set"]["callbacks"] = [early]
    found = run_comparison(make_comparison(tiny), tmp_path, jobs=1)
    assert not found.result.equal
    assert not found.ok
    assert found.result.caveats[0].startswith("NOT AT EQUAL EPSILON: Exp strong, seed 1")


@pytest.mark.slow
def test_several_processes_find_the_same_rows(tiny, tmp_path):
    watching = Watching()
    found = run_comparison(make_comparison(tiny), tmp_path, jobs=2, watcher=watching)
    assert found.ok
    assert sorted(watching.labels) == sorted(outcome.job.label for outcome in found.outcomes)
    assert [len(row.runs) for row in found.result.variants] == [2, 2]


def test_a_comparison_that_is_moved_while_it_runs_ends_with_an_error_and_collects_nothing(tiny, tmp_path):
    class Moves(Watching):
        def stepped(self, job, step):
            super().stepped(job, step)
            if (tmp_path / "old").exists() and not (tmp_path / "new").exists():
                (tmp_path / "old").rename(tmp_path / "new")

    tiny["seeds"] = [1]
    with pytest.raises(CheckpointError, match="old was moved while it was in use"):
        run_comparison(make_comparison(tiny), tmp_path / "old", jobs=1, watcher=Moves())
    assert Ledger.load(tmp_path / "new/runs/fixed/seed-1/ledger.json").total > 0
    assert not list(tmp_path.glob("*/comparison.*"))


@pytest.mark.slow
def test_the_folder_of_a_comparison_and_its_files_are_private(tiny, tmp_path):
    tiny["seeds"] = [1]
    run_comparison(make_comparison(tiny), tmp_path / "new", jobs=1)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    files = [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
