"""Runs jobs in this process or in several, and reports their progress."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext
from pathlib import Path
from types import FrameType
from typing import Protocol

from dpmodel.compare.jobs import JobOutcome, PooledJob, never
from dpmodel.compare.worker import work
from dpmodel.distributed.launcher import GRACE_SECONDS
from dpmodel.saving.lock import holder
from dpmodel.training.interrupt import handling
from monitors.errors import ConfigError

_POLL_SECONDS = 0.2

#: Time between two looks at the folders that other processes hold.
_LOOK_SECONDS = 1.0


class Listener(Protocol):
    """An observer of jobs."""

    def began(self, job: PooledJob) -> None:
        """A job is about to begin."""

    def stepped(self, job: PooledJob, step: int) -> None:
        """A job has done ``step`` steps."""

    def ended(self, outcome: JobOutcome) -> None:
        """A job has ended."""

    def held(self, job: PooledJob, holder: str) -> None:
        """This process waits for a job that a different one trains, given in words."""


def default_jobs() -> int:
    """Default number of processes: half of the cores, at least 1.

    Example:
        >>> default_jobs() >= 1
        True
    """
    return max(1, available_cores() // 2)


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(jobs: Sequence[PooledJob], processes: int, listener: Listener, *, wait: bool = True) -> list[JobOutcome]:
    """Run ``jobs`` and return their outcomes in any order.

    On Ctrl-C, SIGTERM or SIGHUP, the running jobs finish their step and write their results, and no further jobs start.
    A second signal kills them; the steps that they had announced are charged. The outcomes of all jobs that ran are
    returned; those that were cut short are marked as interrupted. A job whose process was killed has failed, and a new
    process takes the next one. If this process is killed, its workers end too (see ``worker.work``).

    Other processes may hold some of the folders: a worker of a killed process during its last step, or a process that
    has joined the comparison. Those jobs come last.

    Args:
        jobs: The jobs, started in this order.
        processes: Number of parallel processes, at least 1. With 1, the jobs run in this process.
        listener: Is notified of their progress.
        wait: Whether to wait for jobs that other processes hold, and to train what these leave unfinished. Otherwise
            they have no outcome.
    """
    count, waiting = min(processes, len(jobs)), _Waiting(deque(jobs), wait, listener)
    return _in_this_process(waiting, listener) if count <= 1 else _in_processes(waiting, count, listener)


@dataclass
class _Waiting:
    """The jobs that nobody trains, and those that other processes hold."""

    jobs: deque[PooledJob]
    wait: bool
    listener: Listener
    _next_look: float = 0.0
    _told: set[tuple[int, str]] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.jobs)

    def take(self) -> PooledJob | None:
        """A job whose folder no other process holds; None if there is none now."""
        if time.monotonic() < self._next_look:
            return None
        held: list[tuple[PooledJob, str]] = []
        for _ in range(len(self.jobs)):
            job = self.jobs.popleft()
            words = None
            with suppress(ConfigError):  # a damaged lock is a fault of that job alone, and is named when it begins
                words = holder(Path(job.directory))
            if words is None:
                return job
            self.leave(job)
            held.append((job, words))
        for job, words in held if self.wait else ():
            if (job.number, words) not in self._told:
                self._told.add((job.number, words))
                self.listener.held(job, words)
        self._next_look = time.monotonic() + _LOOK_SECONDS
        return None

    def leave(self, job: PooledJob) -> None:
        """Leave a job to the process that holds it."""
        if self.wait:
            self.jobs.append(job)

    def interrupted(self, number: int) -> list[JobOutcome]:
        """The outcomes of all jobs, after a signal."""
        return [JobOutcome(job, interrupted=True, signal=number) for job in self.jobs]


def _in_this_process(waiting: _Waiting, listener: Listener) -> list[JobOutcome]:
    outcomes: list[JobOutcome] = []
    while waiting:
        job = waiting.take()
        if job is None:
            with _counted() as signals:
                time.sleep(_POLL_SECONDS)
            if signals:
                return outcomes + waiting.interrupted(signals[0])
            continue
        listener.began(job)
        outcome = job.train(_Forward(job, listener), never)
        listener.ended(outcome)
        if outcome.held:
            waiting.leave(job)
            continue
        outcomes.append(outcome)
        if outcome.interrupted:
            break
    return outcomes


@dataclass(frozen=True)
class _Forward:
    """Forwards the steps of one job to a listener in the same process."""

    job: PooledJob
    listener: Listener

    def __call__(self, number: int, step: int) -> None:
        del number
        self.listener.stepped(self.job, step)


def _in_processes(waiting: _Waiting, count: int, listener: Listener) -> list[JobOutcome]:
    workers, outcomes = _Workers(count), list[JobOutcome]()
    with _counted() as signals, workers.ending():
        while True:
            interrupted = signals or any(outcome.interrupted for outcome in outcomes)
            if interrupted:
                outcomes += waiting.interrupted(signals[0]) if signals and not workers.busy and not outcomes else []
                waiting.jobs.clear()
                workers.stop(signals[0].name if signals else "a different run was interrupted", kill=len(signals) > 1)
            while waiting and (worker := workers.free()) is not None and (job := waiting.take()) is not None:
                worker.take(job)
                listener.began(job)
            if not workers.busy and (not waiting or workers.never_started is not None):
                break
            for job, news in workers.news(_POLL_SECONDS):
                if isinstance(news, int):
                    listener.stepped(job, news)
                    continue
                outcome = JobOutcome(job, interrupted=True) if news.fault and interrupted else news
                listener.ended(outcome)
                waiting.leave(job) if outcome.held else outcomes.append(outcome)
        # Without a worker that starts, the others cannot be trained either.
        outcomes += [JobOutcome(job, workers.never_started) for job in waiting.jobs]
    return [replace(outcome, signal=signals[0]) for outcome in outcomes] if signals else outcomes


@contextmanager
def _counted() -> Iterator[list[signal.Signals]]:
    """Collects the signals that would end this process, instead of being ended by them."""
    received: list[signal.Signals] = []

    def receive(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(signal.Signals(number))

    with handling(receive):
        yield received


@contextmanager
def _blocked() -> Iterator[None]:
    """Blocks the signals of a terminal, for this thread and for the processes that it starts inside the block.

    A terminal sends them to every process at once. The parent decides what they mean, and a worker must not hear them a
    second time, nor die of them while it starts.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Starting this helper of multiprocessing would unblock the signals again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """A worker process as its parent sees it."""

    def __init__(self, context: SpawnContext) -> None:
        self.orders, theirs = context.Pipe()
        arguments = (theirs, os.getpid(), multiprocessing.get_start_method(allow_none=True))
        # Not a daemon: those may not start processes that fetch data.
        self.process = context.Process(target=work, args=arguments, name="dpmodel worker")
        with _blocked():
            self.process.start()
        theirs.close()
        self.job: PooledJob | None = None
        self.ready = False
        self.told = False

    @property
    def current(self) -> PooledJob:
        """The job that it trains."""
        assert self.job is not None
        return self.job

    def take(self, job: PooledJob) -> None:
        """Give it a job; if it has died, ``news`` says so."""
        self.job = job
        self._order(job)

    def stop(self, reason: str) -> None:
        """Let it finish its step and write its results."""
        if not self.told:
            self.told = True
            self._order(reason)

    def news(self) -> Iterator[int | JobOutcome]:
        """Steps done and the outcome of its job, if it has sent them since; a fault if it has died."""
        dead = self.process.exitcode is not None  # asked first: it may send and then die
        try:
            while self.job is not None and self.orders.poll():
                message = self.orders.recv()
                if isinstance(message, JobOutcome):
                    self.job = None
                if message is None:
                    self.ready = True
                else:
                    yield message
        except (EOFError, OSError):
            self.process.join(GRACE_SECONDS)
            dead = True
        if dead and self.job is not None:
            job, self.job = self.job, None
            yield JobOutcome(job, self._death())

    def _order(self, order: object) -> None:
        with suppress(OSError):
            self.orders.send(order)

    def _death(self) -> str:
        code = self.process.exitcode
        if code is not None and code < 0:
            text = f"its process was killed ({signal.Signals(-code).name})"
            return f"{text}, perhaps for lack of memory; use fewer --jobs" if code == -signal.SIGKILL else text
        if self.ready:
            return f"its process ended unexpectedly (exit code {code})"
        return (
            f"its process could not start (exit code {code}); its error is shown above. In a script, start "
            'trainings under `if __name__ == "__main__":`, or with jobs=1'
        )


@dataclass
class _Workers:
    """The worker processes, at most ``count`` at a time."""

    count: int
    alive: list[_Worker] = field(default_factory=list)
    never_started: str | None = None

    @property
    def busy(self) -> list[_Worker]:
        """Those that have a job."""
        return [worker for worker in self.alive if worker.job is not None]

    def free(self) -> _Worker | None:
        """One without a job, started if there is room; None if there is none."""
        for worker in list(self.alive):
            if worker.job is None and worker.process.exitcode is None:
                return worker
            if worker.job is None:
                self._remove(worker)
        if len(self.alive) == self.count or self.never_started is not None:
            return None
        # Threads of torch do not survive a fork, so processes are spawned.
        self.alive.append(_Worker(multiprocessing.get_context("spawn")))
        return self.alive[-1]

    def stop(self, reason: str, *, kill: bool) -> None:
        """Let all of them finish their step, or kill them."""
        for worker in self.busy:
            worker.process.kill() if kill else worker.stop(reason)

    def news(self, timeout: float) -> list[tuple[PooledJob, int | JobOutcome]]:
        """What the workers have to say, after at most ``timeout`` seconds."""
        found: list[tuple[PooledJob, int | JobOutcome]] = []
        wait([worker.orders for worker in self.busy], timeout)
        for worker in self.busy:
            job = worker.current
            found += [(job, news) for news in worker.news()]
            if worker.process.exitcode is not None:
                self._remove(worker)
                if not worker.ready and found and isinstance(found[-1][1], JobOutcome):
                    self.never_started = found[-1][1].fault
        return found

    def _remove(self, worker: _Worker) -> None:
        self.alive.remove(worker)
        worker.orders.close()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End all workers at the end of the block, as if this process had died."""
        try:
            yield
        finally:
            for worker in self.alive:
                worker.orders.close()
            for worker in self.alive:
                worker.process.join(2 * GRACE_SECONDS)
                worker.process.kill()
                worker.process.join()
