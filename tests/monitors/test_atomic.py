import os
import signal
import stat

import pytest

from monitors.atomic import open_for_appending, read_without_links, remove_leftovers, write_atomically


def test_text_and_bytes_are_written_and_folders_are_created(tmp_path):
    write_atomically(tmp_path / "new" / "text", "räksmörgås\n")
    write_atomically(tmp_path / "new" / "bytes", b"\0\1")
    assert (tmp_path / "new" / "text").read_text(encoding="utf-8") == "räksmörgås\n"
    assert (tmp_path / "new" / "bytes").read_bytes() == b"\0\1"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_temporary_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(f"monitors.atomic.os.{failing}", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_files_are_private_and_a_stricter_umask_is_respected(tmp_path):
    write_atomically(tmp_path / "file", "x")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    before = os.umask(0o277)
    try:
        write_atomically(tmp_path / "strict", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "strict").stat().st_mode) == 0o400


def test_a_link_in_the_place_of_the_file_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "other").write_text("other")
    (tmp_path / "file").symlink_to(tmp_path / "other")
    write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "other").read_text() == "other"
    assert not (tmp_path / "file").is_symlink()


def test_a_write_through_a_handle_stays_in_the_folder_that_was_opened(tmp_path):
    (tmp_path / "run").mkdir()
    handle = os.open(tmp_path / "run", os.O_RDONLY)
    try:
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        write_atomically(tmp_path / "run" / "file", "x", folder=handle)
    finally:
        os.close(handle)
    assert (tmp_path / "moved" / "file").read_text() == "x"
    assert not any((tmp_path / "run").iterdir())


def test_appending_refuses_links_and_pipes(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "other")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError, match=r"link|regular"):
            open_for_appending(tmp_path / name)
    assert not (tmp_path / "other").exists()
    handle = open_for_appending(tmp_path / "file")
    os.write(handle, b"x")
    os.close(handle)
    assert (tmp_path / "file").read_bytes() == b"x"


def test_leftovers_of_killed_writes_are_removed_and_nothing_else(tmp_path):
    kept = ["ledger.json", ".lock", "x.tmp", ".ledger.json.swp"]
    for name in [*kept, ".ledger.json.0123456789abcdef.tmp", ".training_state.safetensors.4711.tmp"]:
        (tmp_path / name).touch()
    assert len(remove_leftovers(tmp_path)) == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(kept)


def test_an_error_of_the_system_names_the_file_and_not_the_temporary_one(tmp_path):
    (tmp_path / "gone").mkdir()
    handle = os.open(tmp_path / "gone", os.O_RDONLY)
    (tmp_path / "gone").rmdir()
    try:
        with pytest.raises(FileNotFoundError) as caught:
            write_atomically(tmp_path / "gone" / "file", "x", folder=handle)
    finally:
        os.close(handle)
    assert caught.value.filename == str(tmp_path / "gone" / "file")
    assert not (tmp_path / "gone").exists()


def test_reading_refuses_links_and_pipes(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    assert read_without_links(tmp_path / "file") == b"x"
    for name in ("link", "pipe"):
        with pytest.raises(OSError, match=r"is a link|regular"):
            read_without_links(tmp_path / name)


def test_leftovers_are_removed_from_a_folder_that_was_moved(tmp_path):
    (tmp_path / "run").mkdir()
    handle = os.open(tmp_path / "run", os.O_RDONLY)
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "moved" / ".history.csv.0123456789abcdef.tmp").touch()
    (tmp_path / "moved" / ".notes.4711.tmp").touch()
    try:
        assert remove_leftovers(handle) == [".history.csv.0123456789abcdef.tmp"]
    finally:
        os.close(handle)
    assert [entry.name for entry in (tmp_path / "moved").iterdir()] == [".notes.4711.tmp"]


def test_a_killed_write_leaves_the_old_file_and_a_temporary_one_that_is_removed_later(tmp_path):
    write_atomically(tmp_path / "ledger.json", "old")
    process = os.fork()
    if process == 0:
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
        write_atomically(tmp_path / "ledger.json", "new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert len(remove_leftovers(tmp_path)) == 1
    assert (tmp_path / "ledger.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
