import errno
import os
import shutil
import signal
import socket
import stat
import threading
import time

import pytest

from dpmodel.saving.lock import LOCK_NAME, FolderLock, holder
from monitors.errors import CheckpointError, ConfigError


def test_a_released_lock_removes_its_file_and_an_empty_folder_that_it_created(tmp_path):
    with FolderLock(tmp_path / "new" / "folder") as lock:
        assert (tmp_path / "new" / "folder" / LOCK_NAME).read_text() == f"{os.getpid()} {socket.gethostname()}"
        with pytest.raises(ConfigError, match="in use"):
            FolderLock(lock.path).acquire()
    assert not (tmp_path / "new" / "folder").exists()
    with FolderLock(tmp_path):
        (tmp_path / "file").write_text("")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "file"}
    with pytest.raises(ConfigError, match="cannot be used"):
        FolderLock(tmp_path / "file" / "below").acquire()


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_is_private_and_an_existing_one_keeps_its_mode(tmp_path):
    (tmp_path / "shared").mkdir(mode=0o755)
    with FolderLock(tmp_path / "runs" / "new") as new, FolderLock(tmp_path / "shared") as shared:
        assert mode_of(new.path) == 0o700
        assert mode_of(shared.path) == 0o755
        assert mode_of(new.path / LOCK_NAME) == mode_of(shared.path / LOCK_NAME) == 0o600


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_a_lock_file_that_is_not_a_regular_file_is_refused_and_nothing_is_changed(tmp_path, kind):
    other, lock = tmp_path / "other", tmp_path / "run" / LOCK_NAME
    lock.parent.mkdir()
    {
        "link": lambda: (other.write_text("mine"), lock.symlink_to(other)),
        "dangling link": lambda: lock.symlink_to(other),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
    }[kind]()
    with pytest.raises(ConfigError, match=r"run cannot be used: .*run/\.lock: ") as caught:
        FolderLock(lock.parent).acquire()
    assert "\n" not in str(caught.value)
    assert not other.exists() or other.read_text() == "mine"
    assert os.path.lexists(lock)


def test_a_lock_file_with_a_second_name_is_replaced_and_the_other_file_is_unchanged(tmp_path):
    (tmp_path / "other").write_text("mine")
    (tmp_path / "run").mkdir()
    os.link(tmp_path / "other", tmp_path / "run" / LOCK_NAME)
    with FolderLock(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_NAME).read_text() == f"{os.getpid()} {socket.gethostname()}"
        with pytest.raises(ConfigError, match="in use"):
            FolderLock(tmp_path / "run").acquire()
    assert (tmp_path / "other").read_text() == "mine"


def test_temporary_files_of_killed_writes_are_removed_by_the_next_holder_and_by_nobody_else(tmp_path):
    names = [".training_state.safetensors.4711.tmp", ".ledger.json.0123456789abcdef.tmp"]
    with FolderLock(tmp_path):
        for name in names:
            (tmp_path / name).touch()
        with pytest.raises(ConfigError, match="in use"):
            FolderLock(tmp_path).acquire()
        assert all((tmp_path / name).exists() for name in names)
    with FolderLock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]


def test_a_process_that_is_killed_in_the_middle_of_a_write_leaves_nothing_for_the_next_holder(tmp_path):
    process = os.fork()
    if process == 0:
        with FolderLock(tmp_path) as lock:
            os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
            lock.write(tmp_path / "training_state.safetensors", b"x")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    with FolderLock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch, number):
    def flock(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("dpmodel.saving.lock.fcntl.flock", flock)
    with pytest.raises(ConfigError, match=r"the file system of .*run has no locks .*different file system"):
        FolderLock(tmp_path / "run").acquire()
    assert not (tmp_path / "run").exists()


def test_what_is_written_follows_a_folder_that_was_moved(tmp_path):
    with FolderLock(tmp_path / "run") as lock:
        assert not lock.moved
        lock.path.rename(tmp_path / "moved")
        lock.path.mkdir()
        (lock.path / "ledger.json").write_text("other")
        assert lock.moved
        assert not lock.holds(lock.path / "ledger.json")
        lock.write(lock.path / "history.csv", "x")
        lock.write(lock.path / "state", "x")
        lock.remove(lock.path / "ledger.json", lock.path / "state")
        with pytest.raises(ConfigError, match="in use"):
            FolderLock(tmp_path / "moved").acquire()
        with FolderLock(tmp_path / "run"):
            pass
    assert [path.name for path in (tmp_path / "moved").iterdir()] == ["history.csv"]
    assert mode_of(tmp_path / "moved" / "history.csv") == 0o600
    assert [path.read_text() for path in (tmp_path / "run").iterdir()] == ["other"]


@pytest.mark.parametrize("removed", ["folder", "lock file"])
def test_a_removed_folder_or_lock_file_is_noticed_and_nothing_is_written(tmp_path, removed):
    lock = FolderLock(tmp_path / "run")
    lock.acquire()
    shutil.rmtree(lock.path) if removed == "folder" else (lock.path / LOCK_NAME).unlink()
    for use in (lock.handle, lambda: lock.write(lock.path / "x", "x"), lambda: lock.remove(lock.path / "x")):
        with pytest.raises(CheckpointError, match=r"\.lock was removed"):
            use()
    lock.release()
    assert not (tmp_path / "run").exists()


def test_without_handles_of_folders_the_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("dpmodel.saving.lock._HAS_HANDLES", False)
    with FolderLock(tmp_path / "run") as lock:
        assert lock.handle() is None
        lock.write(lock.path / "x", "x")
        assert lock.holds(lock.path / "x")
        lock.remove(lock.path / "x", lock.path / "y")
        assert not lock.moved
    assert not (tmp_path / "run").exists()


def test_the_holder_of_a_folder_is_named_with_its_machine_if_that_is_a_different_one(tmp_path):
    assert holder(tmp_path / "nowhere") is None
    with FolderLock(tmp_path):
        assert holder(tmp_path) == f"process {os.getpid()}"
        (tmp_path / LOCK_NAME).write_text("4711 elsewhere")
        assert holder(tmp_path) == "process 4711 on elsewhere"
        with pytest.raises(ConfigError, match="in use by process 4711 on elsewhere; wait"):
            FolderLock(tmp_path).acquire()
    (tmp_path / LOCK_NAME).write_text("4711 elsewhere")  # as a killed process leaves it
    assert holder(tmp_path) is None
    assert (tmp_path / LOCK_NAME).read_text() == "4711 elsewhere"


def test_a_process_that_asks_who_holds_a_folder_does_not_keep_others_from_taking_it(tmp_path):
    with FolderLock(tmp_path):
        pass
    (tmp_path / LOCK_NAME).touch()
    ended = threading.Event()

    def ask():
        while not ended.is_set():
            holder(tmp_path)
            time.sleep(0.001)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(20):
            with FolderLock(tmp_path):
                pass
            (tmp_path / LOCK_NAME).touch()
    finally:
        ended.set()
        asking.join()
