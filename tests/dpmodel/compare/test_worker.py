import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import Pipe

import pytest

from dpmodel.compare import worker
from dpmodel.compare.jobs import Job, JobOutcome
from dpmodel.compare.pool import _blocked, _Workers
from dpmodel.compare.worker import Supervision

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

JOB = Job(0, "fixed", 1, 10, "nowhere", "", "")

#: Starts a worker as the pool does, and prints how that worker starts processes.
SCRIPT = """
import multiprocessing
import os
from dpmodel.compare.worker import work

def working(orders, parent, start_method, news):
    work(orders, parent, start_method)
    news.send(multiprocessing.get_start_method())

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    (ours, theirs), (told, news) = context.Pipe(), context.Pipe(duplex=False)
    arguments = (theirs, os.getpid(), multiprocessing.get_start_method(), news)
    context.Process(target=working, args=arguments).start()
    ours.close()
    theirs.close()
    print(told.recv())
"""


def train_until_stopped(orders, parent, news):
    """What a worker does, without torch: says why it has to stop, and never ends by itself."""
    supervision = Supervision(orders, parent)
    supervision.start()
    os.write(news, b"began;")
    while supervision.stop_reason() is None:
        time.sleep(0.01)
    os.write(news, supervision.stop_reason().encode())
    time.sleep(60)


@pytest.mark.parametrize("held_open", [False, True], ids=["the pipe closes", "a different process holds the pipe"])
def test_a_worker_whose_parent_is_killed_stops_and_is_ended(monkeypatch, held_open):
    monkeypatch.setattr(worker, "GRACE_SECONDS", 0.2)
    ours, theirs = Pipe()
    told, news = os.pipe()
    if (parent := os.fork()) == 0:
        if os.fork() == 0:
            with suppress(BaseException):
                ours.close()
                train_until_stopped(theirs, os.getppid(), news)
            os._exit(0)
        os.close(news)
        time.sleep(60)
        os._exit(0)
    os.close(news)
    if not held_open:
        ours.close()
    theirs.close()
    assert os.read(told, 100) == b"began;"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    # the end of the file says that the worker has ended, a minute before it would have done so itself
    with os.fdopen(told) as stream:
        assert stream.read() == "interrupted (the parent process ended)"


def test_orders_stop_the_training_once_and_a_closed_connection_ends_the_jobs(monkeypatch):
    ours, theirs = Pipe()
    supervision = Supervision(theirs, os.getppid())
    ours.send(JOB)
    ours.send("SIGTERM")
    ours.send("SIGINT")
    ours.close()
    slept = []
    monkeypatch.setattr(worker.time, "sleep", slept.append)
    monkeypatch.setattr(worker.os, "_exit", lambda code: None)
    supervision.run()
    assert list(supervision.jobs()) == [JOB]
    assert supervision.stop_reason() == "interrupted (SIGTERM)"
    supervision.send(1)  # nobody listens any more; the training must still save


@pytest.mark.slow
def test_a_worker_starts_the_processes_that_fetch_its_data_as_its_parent_would(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert found.stdout == f"{multiprocessing.get_start_method()}\n", found.stderr


def test_terminal_signals_are_blocked_for_a_worker_and_for_nothing_else():
    terminal = {signal.SIGINT, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with _blocked():
        assert terminal <= signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


class FakeWorker:
    """A worker that dies as it is told to."""

    def __init__(self, context):
        self.orders, self.theirs = Pipe()
        self.process = type("Process", (), {"exitcode": None})()
        self.job, self.current, self.ready = None, JOB, True

    def news(self):
        job, self.job = self.job, None
        self.process.exitcode = -9
        yield JobOutcome(job, "killed")


@pytest.mark.parametrize(("ready", "replaced"), [(True, True), (False, False)])
def test_a_worker_that_died_is_replaced_unless_it_never_started(monkeypatch, ready, replaced):
    monkeypatch.setattr("dpmodel.compare.pool._Worker", FakeWorker)
    workers = _Workers(1)
    first = workers.free()
    first.job, first.ready = JOB, ready
    assert workers.free() is None
    first.theirs.close()
    assert workers.news(0.0) == [(JOB, JobOutcome(JOB, "killed"))]
    second = workers.free()
    assert (second is not None) is replaced
    assert second is not first
