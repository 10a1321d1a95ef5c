"""A worker process: trains the jobs that it is sent, and ends with the process that started it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import FrameType

from dpmodel.compare.jobs import PooledJob
from dpmodel.distributed.launcher import GRACE_SECONDS
from dpmodel.training.interrupt import INTERRUPTED

_LOOK_SECONDS = 0.5
_REPORT_SECONDS = 0.3

_PR_SET_PDEATHSIG = 1


def work(orders: Connection, parent: int, start_method: str | None) -> None:
    """Train the jobs that arrive on ``orders`` until it is closed.

    The worker sends None when it is ready, the number of steps done now and then, and a ``JobOutcome`` for each job.

    Guarantee: when the parent ends, however it ends, the worker finishes its step, saves, and ends. It is killed after
    ``GRACE_SECONDS`` if it is not done by then; its write-ahead journal charges the steps that it had announced.

    Args:
        orders: Connection to the parent, which sends jobs, or the reason to stop the current one.
        parent: ID of the parent process.
        start_method: How the parent starts processes by default; None: as the system does.
    """
    # A spawned process would spawn those that fetch its data, slowly and anew in each epoch. One whose parent is killed
    # while it starts would not end; forked ones do (see `_end_with_parent`).
    multiprocessing.set_start_method(start_method, force=True)
    supervision = Supervision(orders, parent)
    _heed_signals(supervision)
    _end_with_parent()
    supervision.start()
    supervision.send(None)
    for job in supervision.jobs():
        supervision.send(job.train(_reporter(job, supervision), supervision.stop_reason))


class Supervision(threading.Thread):
    """Receives the orders of the parent during a training, and notices its death.

    Args:
        orders: Connection to the parent.
        parent: ID of the parent process.
    """

    def __init__(self, orders: Connection, parent: int) -> None:
        super().__init__(daemon=True, name="dpmodel supervision")
        self.orders = orders
        self.parent = parent
        self._jobs: queue.SimpleQueue[PooledJob | None] = queue.SimpleQueue()
        self._reason: str | None = None

    def jobs(self) -> Iterator[PooledJob]:
        """The jobs, as they arrive, until the parent needs no more."""
        while (job := self._jobs.get()) is not None:
            yield job

    def stop_reason(self) -> str | None:
        """Why the current training has to stop; None if it may continue."""
        return self._reason

    def stop(self, reason: str) -> None:
        """Stop the current training after its step; the first reason is kept."""
        if self._reason is None:
            self._reason = f"{INTERRUPTED} ({reason})"

    def send(self, message: object) -> None:
        """Send ``message`` to the parent, unless it has died."""
        try:
            self.orders.send(message)
        except OSError:  # an error here would end the training without saving
            self.stop("the parent process ended")

    def run(self) -> None:
        """Follow the orders until the parent ends."""
        with contextlib.suppress(EOFError, OSError):
            # A process that the parent forked may hold the connection open after its death; the ID shows it anyway.
            while os.getppid() == self.parent:
                if self.orders.poll(_LOOK_SECONDS):
                    order = self.orders.recv()
                    self.stop(order) if isinstance(order, str) else self._jobs.put(order)
        self.stop("the parent process ended")
        self._jobs.put(None)
        time.sleep(GRACE_SECONDS)
        with contextlib.suppress(Exception):
            for child in multiprocessing.active_children():  # those that fetch its data
                child.kill()
        os._exit(1)


def _reporter(job: PooledJob, supervision: Supervision) -> Callable[[int, int], None]:
    last = 0.0

    def stepped(number: int, step: int) -> None:
        del number
        nonlocal last
        now = time.monotonic()
        if now - last > _REPORT_SECONDS or step == job.steps:
            last = now
            supervision.send(step)

    return stepped


def _heed_signals(supervision: Supervision) -> None:
    def terminated(number: int, frame: FrameType | None) -> None:
        del number, frame
        if supervision.stop_reason() is not None:
            raise KeyboardInterrupt
        supervision.stop("SIGTERM")

    # While a training runs, it handles this signal itself, in the same way.
    signal.signal(signal.SIGTERM, terminated)


def _end_with_parent() -> None:
    """Let Linux send SIGTERM when the parent dies, and kill the processes that this one forks when this one dies.

    Other systems have only the supervision. Whether the parent died before this call is for the supervision to see.
    """
    if sys.platform != "linux":
        return
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        return
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM.value, 0, 0, 0)
    here, kill = threading.get_ident(), signal.SIGKILL.value

    def forked() -> None:
        # The system means the parent thread: a child of a thread that ends early must not die with it.
        if threading.get_ident() == here:
            prctl(_PR_SET_PDEATHSIG, kill, 0, 0, 0)

    os.register_at_fork(after_in_child=forked)
