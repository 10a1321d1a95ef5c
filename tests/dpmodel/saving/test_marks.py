"""Marks outside a folder: a folder that was rolled back, or a copy that goes its own way, is refused."""

import os
import shutil
import stat

import pytest

from dpmodel import StateKeeper
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.marks import VARIABLE, TrainingMark, marks_folder, require_marked_lines
from monitors.errors import CheckpointError
from monitors.journal import ReleaseJournal

from ..power_cut import PowerCut
from .trainings import SECRET, build, fit

ID = "0123456789abcdef" * 2


def test_a_saved_mark_is_read_back_and_is_private(tmp_path, monkeypatch):
    monkeypatch.setenv("DPMODEL_MARKS", str(tmp_path / "marks"))
    mark = TrainingMark(ID, 3, "f" * 64, "c" * 64)
    assert TrainingMark.of(ID) is None
    mark.save()
    assert TrainingMark.of(ID) == mark
    assert stat.S_IMODE(os.stat(tmp_path / "marks").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(tmp_path / "marks" / f"{ID}.json").st_mode) == 0o600


@pytest.mark.parametrize("value", ["", "off", "OFF"])
def test_no_marks_are_kept_if_the_user_opts_out(monkeypatch, value):
    monkeypatch.setenv("DPMODEL_MARKS", value)
    TrainingMark(ID, 3, "f" * 64).save()
    assert marks_folder() is None
    assert TrainingMark.of(ID) is None


@pytest.mark.parametrize("content", ["{", "[]", '{"training": 1}', "[" * 10_000, '{"training": "%s"}' % ("a" * 32)])
def test_a_mark_that_cannot_be_read_is_no_mark(tmp_path, monkeypatch, content):
    monkeypatch.setenv("DPMODEL_MARKS", str(tmp_path))
    (tmp_path / f"{ID}.json").write_text(content)
    assert TrainingMark.of(ID) is None


def test_an_id_cannot_name_a_file_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("DPMODEL_MARKS", str(tmp_path))
    assert TrainingMark.of("../" + ID) is None


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPMODEL_MARKS", str(tmp_path / "file" / "marks"))
    TrainingMark(ID, 3, "f" * 64).save()


@pytest.fixture
def interrupted(tmp_path):
    """A folder with a training that was interrupted after step 6."""
    with pytest.raises(KeyboardInterrupt):
        fit(build(SECRET), SECRET, PowerCut(6), keeper=StateKeeper(tmp_path / "run", 4))
    return RunFolder(tmp_path / "run")


def resume(folder):
    return fit(build(SECRET), SECRET, keeper=StateKeeper(folder.path, 4, resume=True))


def test_a_folder_that_was_rolled_back_is_refused_with_the_remedy(interrupted, tmp_path, monkeypatch):
    older = RunFolder(shutil.copytree(interrupted.path, tmp_path / "older"))
    older.read_ledger()
    resume(interrupted)
    for use in (RunFolder.read_ledger, resume):
        with pytest.raises(CheckpointError, match=r"an older copy of its ledger.*, or set DPMODEL_MARKS=off") as caught:
            use(older)
        assert str(TrainingMark.of(ReleaseJournal(older.journal).training).path) in str(caught.value)
    monkeypatch.setenv(VARIABLE, "off")
    older.read_ledger()
    resume(older)


def test_of_two_copies_that_go_on_the_one_that_went_first_is_used(interrupted, tmp_path, monkeypatch):
    other = RunFolder(shutil.copytree(interrupted.path, tmp_path / "other"))
    resume(interrupted)
    with monkeypatch.context() as patched:
        patched.setenv(VARIABLE, "off")  # as a different user would
        resume(other)
    with pytest.raises(CheckpointError, match="or different ones"):
        other.read_ledger()
    interrupted.read_ledger()


@pytest.mark.parametrize("lost", ["a line", "the last block", "all lines"])
def test_a_journal_that_lost_lines_is_refused(interrupted, lost):
    lines = interrupted.journal.read_bytes().splitlines(keepends=True)
    kept = {"a line": lines[:-1], "the last block": lines[:-2], "all lines": []}[lost]
    interrupted.journal.write_bytes(b"".join(kept))
    for use in (RunFolder.read_ledger, resume):
        with pytest.raises(CheckpointError):
            use(interrupted)


def test_a_journal_without_its_last_byte_is_complete(interrupted):
    whole = interrupted.read_ledger()
    interrupted.journal.write_bytes(interrupted.journal.read_bytes()[:-1])
    assert interrupted.read_ledger() == whole
    resume(interrupted)


def test_a_training_resumes_after_a_line_that_was_never_completed(interrupted):
    with interrupted.journal.open("ab") as stream:
        stream.write(b'1234 {"kind": "violation", "rea')
    resume(interrupted)
    assert interrupted.read_ledger().total


def test_a_mark_that_is_older_than_the_journal_refuses_nothing(interrupted):
    journal = ReleaseJournal(interrupted.journal)
    TrainingMark(journal.training, 0, ReleaseJournal(interrupted.path / "none").head).save()
    assert require_marked_lines(interrupted.journal).head == journal.head


def test_a_missing_ledger_is_refused_on_resume(interrupted):
    interrupted.ledger.unlink()
    with pytest.raises(CheckpointError, match=r"ledger\.json is missing"):
        resume(interrupted)


def test_a_folder_of_an_unknown_user_is_refused_with_the_variable(monkeypatch):
    monkeypatch.setenv("DPMODEL_MARKS", "~nosuchuser/marks")
    with pytest.raises(CheckpointError, match="DPMODEL_MARKS='~nosuchuser/marks' is in the home folder of an unknown"):
        marks_folder()
