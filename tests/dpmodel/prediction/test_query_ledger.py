"""Answers are charged before they leave; the record survives kills, and shows changes."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.prediction import BudgetExhausted, QueryLedger, QueryStatus, query_status
from dpmodel.saving.lock import FolderInUseError
from monitors import (
    ComposedEvent,
    DisjointEvent,
    GaussianEvent,
    Ledger,
    PoissonSampledEvent,
    gaussian_delta,
    privacy_spent,
)
from monitors.errors import CheckpointError, ConfigError, UnsupportedEventError

DELTA = 1e-5
EVENT = GaussianEvent(20.0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "queries"


def test_the_budget_is_exact(folder):
    with QueryLedger(folder, 1.0, DELTA) as ledger:
        count = ledger.left(EVENT)
        assert gaussian_delta(math.sqrt(count) / 20.0, 1.0) <= DELTA < gaussian_delta(math.sqrt(count + 1) / 20.0, 1.0)
        ledger.charge(EVENT, count)
        assert ledger.left(EVENT) == 0
        assert ledger.spent <= 1.0
        assert privacy_spent(ledger.ledger, DELTA, "pld").epsilon == pytest.approx(ledger.spent, rel=1e-3)


def test_a_batch_that_does_not_fit_is_refused_whole(folder):
    with QueryLedger(folder, 1.0, DELTA) as ledger:
        left = ledger.left(EVENT)
        ledger.charge(EVENT, 3)
        spent = ledger.spent
        with pytest.raises(BudgetExhausted) as caught:
            ledger.charge(EVENT, left)
        assert (caught.value.asked, caught.value.left, caught.value.spent) == (left, left - 3, spent)
        assert ledger.spent == spent
        ledger.charge(EVENT, left - 3)
    with QueryLedger(folder) as ledger, pytest.raises(BudgetExhausted):
        ledger.charge(EVENT)


def test_room_for_later_answers_is_required_but_not_charged(folder):
    with QueryLedger(folder, 1.0, DELTA) as ledger:
        left = ledger.left(EVENT)
        with pytest.raises(BudgetExhausted) as caught:
            ledger.charge(EVENT, left, room=[(EVENT, left)])
        assert caught.value.left == left // 2
        ledger.charge(EVENT, left // 2, room=[(EVENT, left // 2)])
        assert ledger.left(EVENT) == left - left // 2


@settings(max_examples=30, deadline=None)
@given(
    multipliers=st.lists(st.floats(2.0, 100.0), min_size=1, max_size=8),
    epsilon=st.floats(0.1, 8.0),
    delta=st.sampled_from([1e-3, 1e-5, 1e-8]),
)
def test_adaptive_charges_never_exceed_the_budget(tmp_path_factory, multipliers, epsilon, delta):
    folder = tmp_path_factory.mktemp("queries")
    with QueryLedger(folder, epsilon, delta) as ledger:
        for multiplier in multipliers:
            event = GaussianEvent(multiplier)
            count = max(1, ledger.left(event) // 2)
            if ledger.fits((event, count)):
                ledger.charge(event, count)
            else:
                with pytest.raises(BudgetExhausted):
                    ledger.charge(event, count)
        assert privacy_spent(ledger.ledger, delta, "pld").epsilon <= epsilon * (1 + 1e-3)
        assert ledger.spent <= epsilon


def test_earlier_releases_are_part_of_the_budget(folder, tmp_path):
    training = Ledger()
    training.record(PoissonSampledEvent(0.01, GaussianEvent(1.0)), 500)
    before = privacy_spent(training, DELTA, "pld").epsilon
    with QueryLedger(folder, 3.0, DELTA, spent=training) as ledger, QueryLedger(tmp_path / "b", 3.0, DELTA) as alone:
        assert ledger.spent == pytest.approx(before, rel=1e-6)
        assert ledger.left(EVENT) < alone.left(EVENT)
        ledger.charge(EVENT, ledger.left(EVENT))
        total = privacy_spent(ledger.ledger, DELTA, "pld").epsilon
        assert 2.99 <= total <= 3.0 * (1 + 1e-4)
    with pytest.raises(BudgetExhausted, match="is spent"):
        QueryLedger(tmp_path / "c", 0.5 * before, DELTA, spent=training)


def test_what_was_charged_is_there_after_the_ledger_is_opened_again(folder):
    with QueryLedger(folder, 2.0, DELTA) as ledger:
        ledger.charge(EVENT, 5)
        ledger.note("a note")
        spent = ledger.spent
    with QueryLedger(folder) as ledger:
        assert (ledger.epsilon, ledger.delta, ledger.spent) == (2.0, DELTA, spent)
        assert "a note" in ledger.ledger.notes
        ledger.charge(EVENT, 5)
    with QueryLedger(folder, 2.0, DELTA) as ledger:
        assert sum(count for _, count in ledger.ledger) == 10


def test_a_different_budget_is_refused(folder):
    QueryLedger(folder, 2.0, DELTA).close()
    with pytest.raises(ConfigError, match="have a budget of epsilon 2 at delta 1e-05"):
        QueryLedger(folder, 3.0, DELTA)
    with pytest.raises(ConfigError, match="spent is for a new folder"):
        QueryLedger(folder, spent=Ledger())


def test_a_new_folder_needs_a_budget(folder):
    with pytest.raises(ConfigError, match="give epsilon and delta"):
        QueryLedger(folder)
    assert not folder.exists()


def test_the_folder_of_a_training_is_refused(folder):
    folder.mkdir()
    Ledger().save(folder / "ledger.json")
    with pytest.raises(ConfigError, match="belongs to a training"):
        QueryLedger(folder, 1.0, DELTA)


def test_one_process_at_a_time(folder):
    with QueryLedger(folder, 1.0, DELTA), pytest.raises(FolderInUseError):
        QueryLedger(folder)


def test_a_closed_ledger_answers_nothing(folder):
    ledger = QueryLedger(folder, 1.0, DELTA)
    ledger.close()
    ledger.close()
    with pytest.raises(CheckpointError, match="is closed"):
        ledger.charge(EVENT)


@pytest.mark.parametrize("name", ["ledger.json", "releases.jsonl", "budget.json"])
def test_a_missing_file_is_noticed(folder, name):
    with QueryLedger(folder, 1.0, DELTA) as ledger:
        ledger.charge(EVENT, 5)
    (folder / name).unlink()
    with pytest.raises((CheckpointError, ConfigError)):
        QueryLedger(folder, 1.0, DELTA)


def test_a_shortened_ledger_is_noticed(folder):
    with QueryLedger(folder, 1.0, DELTA) as ledger:
        ledger.charge(EVENT, 5)
        ledger.charge(EVENT, 6)
    lines = (folder / "releases.jsonl").read_text().splitlines(keepends=True)
    (folder / "releases.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(CheckpointError):
        QueryLedger(folder)


def test_a_changed_ledger_is_noticed(folder):
    with QueryLedger(folder, 1.0, DELTA) as ledger:
        ledger.charge(EVENT, 5)
    path = folder / "ledger.json"
    values = json.loads(path.read_text())
    values["rows"][0]["count"] = 1
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="changed after it was written"):
        QueryLedger(folder)


def test_the_ledger_of_another_folder_is_noticed(folder, tmp_path):
    for place in (folder, tmp_path / "other"):
        with QueryLedger(place, 1.0, DELTA) as ledger:
            ledger.charge(EVENT, 5)
    (folder / "releases.jsonl").write_bytes((tmp_path / "other" / "releases.jsonl").read_bytes())
    with pytest.raises(CheckpointError):
        QueryLedger(folder)


def test_a_charge_that_cannot_be_written_closes_the_ledger(folder, monkeypatch):
    ledger = QueryLedger(folder, 1.0, DELTA)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        ledger.charge(EVENT)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="is closed"):
        ledger.charge(EVENT)
    ledger.close()
    with QueryLedger(folder) as again:
        assert sum(count for _, count in again.ledger) <= 1


def test_a_charge_that_was_interrupted_after_it_was_written_is_not_refunded(folder, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    ledger = QueryLedger(folder, 1.0, DELTA)
    monkeypatch.setattr(ledger._ledger, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ledger.charge(EVENT, 5)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="is closed"):
        ledger.charge(EVENT)
    ledger.close()
    assert query_status(folder).asked == 5


@pytest.mark.parametrize("multiplier", [5e-324, 1e-200, 1e-160])
def test_an_answer_with_next_to_no_noise_does_not_fit(folder, multiplier):
    with QueryLedger(folder, 1.0, DELTA) as ledger, pytest.raises(BudgetExhausted):
        ledger.charge(GaussianEvent(multiplier))


def test_no_answer_is_free_however_much_noise_it_has(folder):
    with QueryLedger(folder, 1.0, DELTA) as ledger:
        ledger.charge(GaussianEvent(1e300))
        assert 0 < ledger._squared < 1e-100
        assert ledger.left(GaussianEvent(1e300)) > 10**100


def answer_forever(folder, written):
    """Charge and answer until killed, in a process of its own."""
    with QueryLedger(folder, 1e3, DELTA) as ledger:
        while True:
            ledger.charge(EVENT, 3)
            os.write(written, b"a")


def kill_once(folder, answers):
    """Number of answers that a process gave before it was killed."""
    read, written = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer_forever(folder, written)
        finally:
            os._exit(1)
    os.close(written)
    with os.fdopen(read, "rb") as pipe:
        given = len(pipe.read(answers))
        os.kill(child, signal.SIGKILL)
        given += len(pipe.read())
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    return 3 * given


def test_a_killed_process_has_charged_all_that_it_answered(folder):
    given = kill_once(folder, 5)
    with QueryLedger(folder) as ledger:
        charged = sum(count for _, count in ledger.ledger)
    assert given <= charged <= given + 3


@pytest.mark.slow
def test_no_kill_leaves_too_small_a_charge(folder):
    given = 0
    for answers in range(1, 22):
        given += kill_once(folder, answers % 7 + 1)
        with QueryLedger(folder) as ledger:
            charged = sum(count for _, count in ledger.ledger)
        assert given <= charged <= given + 3 * answers


def test_the_status_is_read_while_a_process_uses_the_ledger(folder):
    training = Ledger()
    training.record(PoissonSampledEvent(0.01, GaussianEvent(1.0)), 50)
    training.record(GaussianEvent(50.0), 2)
    with QueryLedger(folder, 3.0, DELTA, spent=training) as ledger:
        assert query_status(folder).left is None
        ledger.charge(EVENT, 5)
        status = query_status(folder)
        assert (status.asked, status.left) == (ledger.asked, ledger.left(EVENT)) == (5, status.left)
        assert status.spent == ledger.spent
    assert query_status(folder) == QueryStatus(5, status.left, status.spent, 3.0, DELTA, ledger.ledger.notes)


def test_there_is_no_status_of_other_folders(tmp_path):
    with pytest.raises(ConfigError, match="holds no query budget"):
        query_status(tmp_path)


def forked(action):
    """What ``action`` returns or raises in a forked process, as text."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = repr(action())
        except BaseException as error:
            found = str(error)
        os.write(write, found.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


def test_a_forked_process_spends_nothing_of_the_budget_of_its_parent(folder):
    with QueryLedger(folder, 1.0, DELTA) as ledger:
        ledger.charge(EVENT, 5)
        assert "one process" in forked(lambda: ledger.charge(EVENT, 5))
        assert "one process" in forked(lambda: ledger.answers)
        assert forked(lambda: ledger.is_open) == "False"
        assert forked(ledger.close) == "None"
        ledger.charge(EVENT, 5)
    assert query_status(folder).asked == 10


def test_releases_without_a_common_relation_have_no_budget(folder):
    counted = PoissonSampledEvent(0.1, ComposedEvent((GaussianEvent(4.0), GaussianEvent(9.0))))
    spent = Ledger().record(counted).record(DisjointEvent(0, GaussianEvent(4.0)))
    with pytest.raises(UnsupportedEventError):
        QueryLedger(folder, 8.0, DELTA, spent=spent)
    assert not (folder / "budget.json").exists()


def test_a_copy_from_before_the_last_use_is_refused(folder, tmp_path):
    QueryLedger(folder, 1.0, DELTA).close()
    shutil.copytree(folder, tmp_path / "copy")
    with QueryLedger(folder) as ledger:
        ledger.charge(EVENT, 5)
    with pytest.raises(CheckpointError, match="an older copy of its ledger"):
        QueryLedger(tmp_path / "copy")


def test_two_copies_are_not_both_used_even_if_the_first_was_killed(folder, tmp_path):
    QueryLedger(folder, 1.0, DELTA).close()
    shutil.copytree(folder, tmp_path / "copy")
    with QueryLedger(folder), pytest.raises(CheckpointError, match="an older copy of its ledger"):
        QueryLedger(tmp_path / "copy")


def test_a_copy_is_refused_while_the_original_charges(folder, tmp_path):
    with QueryLedger(folder, 1.0, DELTA) as ledger:
        ledger.charge(EVENT, 5)
        shutil.copytree(folder, tmp_path / "copy")
        ledger.charge(EVENT, 5)
        with pytest.raises(CheckpointError, match="an older copy of its ledger"):
            QueryLedger(tmp_path / "copy")
        ledger.charge(EVENT, 5)


def test_the_original_charges_no_more_once_a_copy_is_open(folder, tmp_path):
    with QueryLedger(folder, 1.0, DELTA) as ledger:
        ledger.charge(EVENT, 5)
        shutil.copytree(folder, tmp_path / "copy")
        with QueryLedger(tmp_path / "copy") as copied:
            assert copied.asked == 5
            with pytest.raises(CheckpointError, match="an older copy of its ledger"):
                ledger.charge(EVENT, 5)
            copied.charge(EVENT, 5)
        assert ledger.asked == 5
    with pytest.raises(CheckpointError, match="an older copy of its ledger"):
        QueryLedger(folder)
    assert QueryLedger(tmp_path / "copy").asked == 10


@pytest.mark.parametrize("names", [["ledger.json"], ["ledger.json", "releases.jsonl"], ["releases.jsonl"]])
def test_releases_before_the_queries_are_never_forgotten(folder, names):
    QueryLedger(folder, 3.0, DELTA, spent=Ledger().record(GaussianEvent(2.0), 2)).close()
    for name in names:
        (folder / name).unlink()
    with pytest.raises(CheckpointError):
        QueryLedger(folder)


def test_a_folder_whose_making_was_interrupted_holds_no_budget(folder, monkeypatch):
    def killed(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        QueryLedger(folder, 3.0, DELTA, spent=Ledger().record(GaussianEvent(2.0), 2))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="killed before the first query"):
        QueryLedger(folder, 3.0, DELTA)


@pytest.mark.parametrize("name", ["epsilon", "delta", "before", "journal", "digest"])
def test_a_changed_budget_is_refused(folder, name):
    QueryLedger(folder, 1.0, DELTA).close()
    path = folder / "budget.json"
    values = json.loads(path.read_text())
    values[name] = {"epsilon": 100.0, "delta": 0.1, "before": 3}.get(name, "00" * 16)
    path.write_text(json.dumps(values))
    for use in (QueryLedger, query_status, QueryLedger.budget_of):
        with pytest.raises(CheckpointError, match=r"budget\.json"):
            use(folder)


def test_the_budget_of_another_ledger_is_refused(folder, tmp_path):
    QueryLedger(folder, 1.0, DELTA).close()
    QueryLedger(tmp_path / "rich", 100.0, DELTA).close()
    shutil.copy(tmp_path / "rich" / "budget.json", folder)
    with pytest.raises(CheckpointError, match="the budget of a different ledger"):
        QueryLedger(folder)


def test_any_number_of_answers_can_be_read_again_after_a_kill(folder):
    cheap = GaussianEvent(1e6)
    ledger = QueryLedger(folder, 1.0, DELTA)
    for _ in range(3):
        ledger.charge(cheap, 6_000_000)
    with pytest.raises(ValueError, match="at most 10,000,000 answers can be charged at once"):
        ledger.charge(cheap, 10_000_001)
    ledger._lock.release()  # as after a kill: nothing more is written
    with QueryLedger(folder) as again:
        assert again.asked == 18_000_000
