"""Writes outside Python objects are refused while the network processes an example."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

from mechanisms.engines.state.outside import Outside
from monitors.errors import UnprotectedUpdateError

WRITES = {
    "opens .* for writing": lambda folder: (folder / "new").open("w"),
    "opens .*appended for writing": lambda folder: (folder / "appended").open("ab"),
    "opens .*numbers.npy for writing": lambda folder: np.save(folder / "numbers.npy", np.ones(2)),
    "opens .*descriptor for writing": lambda folder: os.open(folder / "descriptor", os.O_CREAT | os.O_WRONLY),
    "opens .*/log for writing": lambda folder: logging.FileHandler(folder / "log"),
    "changes the owner": lambda folder: os.chown(folder / "old", os.getuid(), os.getgid()),
    "renames": lambda folder: os.rename(folder / "old", folder / "other"),
    "removes": lambda folder: os.remove(folder / "old"),
    "creates the folder": lambda folder: os.mkdir(folder / "folder"),
    "links": lambda folder: os.symlink(folder / "old", folder / "link"),
    "changes the times": lambda folder: os.utime(folder / "old"),
    "sets the environment variable": lambda folder: os.environ.update(OF_A_TEST="1"),
    "removes the environment variable PATH": lambda folder: os.environ.pop("PATH"),
    "opens the database": lambda folder: sqlite3.connect(folder / "base"),
    "connects a socket": lambda folder: socket.socket().connect(("127.0.0.1", 1)),
    "starts a process": lambda folder: subprocess.run([sys.executable, "-c", ""], check=True),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "old").write_text("1")
    (tmp_path / "module_imported_late.py").write_text("NUMBER = 1\n")
    return tmp_path


@pytest.mark.parametrize("what", WRITES)
def test_a_write_is_refused_before_it_happens(what, folder):
    before = sorted(os.listdir(folder)), dict(os.environ)
    with pytest.raises(UnprotectedUpdateError, match=f"the network, the loss or a hook {what}"), Outside():
        WRITES[what](folder)
    assert (sorted(os.listdir(folder)), dict(os.environ)) == before


@contextlib.contextmanager
def hidden():
    try:
        yield
    except UnprotectedUpdateError:
        raise RuntimeError("another error hides the refusal") from None


def test_a_refusal_that_is_caught_is_raised_at_the_end(folder):
    with pytest.raises(UnprotectedUpdateError, match="opens"), Outside(), contextlib.suppress(Exception):
        (folder / "new").write_text("1")
    with pytest.raises(UnprotectedUpdateError, match="opens"), Outside(), hidden():
        (folder / "new").write_text("1")


def late_logger(folder):
    handler = logging.FileHandler(folder / "log", delay=True)
    logging.Logger("late", level=logging.INFO).addHandler(handler)
    handler.emit(logging.LogRecord("late", logging.INFO, "", 0, "a line", None, None))
    handler.close()


def late_import(folder):
    sys.path.insert(0, str(folder))
    try:
        import module_imported_late
    finally:
        sys.path.remove(str(folder))
    assert module_imported_late.NUMBER == 1


HONEST = {
    "reads": lambda folder: (folder / "old").read_text(),
    "writes to the null device": lambda folder: open(os.devnull, "w").close(),
    "writes to an open stream": lambda folder: os.write(1, b"") + sys.stdout.write(""),
    "opens a log late": late_logger,
    "imports late": late_import,
    "warns": lambda folder: warnings.warn("once", stacklevel=1),
    "reads the environment": lambda folder: os.environ.get("PATH"),
    "keeps a database in memory": lambda folder: sqlite3.connect(":memory:").close(),
}


@pytest.mark.parametrize("what", HONEST)
@pytest.mark.filterwarnings("ignore:once")
def test_writes_that_cannot_hold_an_example_are_allowed(what, folder):
    with Outside():
        HONEST[what](folder)


def test_nothing_is_refused_outside_a_pass_or_in_a_different_thread(folder):
    def write():
        (folder / "thread").write_text("1")

    with Outside(), Outside():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    (folder / "after").write_text("1")
    assert {"after", "thread"} <= set(os.listdir(folder))


class Clearing:
    """Removes a file when it is garbage collected, which may be during a pass."""

    def __init__(self, path):
        self.path = path

    def __del__(self):
        os.remove(self.path)


def test_cleanup_of_garbage_during_a_pass_is_allowed(folder):
    held = [Clearing(folder / "old")]
    with Outside():
        held.clear()
    assert not (folder / "old").exists()
