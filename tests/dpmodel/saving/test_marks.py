import os
import stat

import pytest

from dpmodel.saving.marks import TrainingMark, marks_folder

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
