import pytest

from monitors.atomic import write_atomically


def test_text_and_bytes_are_written_and_folders_are_created(tmp_path):
    write_atomically(tmp_path / "new" / "text", "räksmörgås\n")
    write_atomically(tmp_path / "new" / "bytes", b"\0\1")
    assert (tmp_path / "new" / "text").read_text(encoding="utf-8") == "räksmörgås\n"
    assert (tmp_path / "new" / "bytes").read_bytes() == b"\0\1"


@pytest.mark.parametrize("failing", ["os.fsync", "Path.replace"])
def test_a_failure_leaves_the_old_file_and_no_temporary_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(f"monitors.atomic.{failing}", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
