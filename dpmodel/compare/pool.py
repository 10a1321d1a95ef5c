"""Runs jobs in this process or in several, and reports their progress."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol

from dpmodel.compare.jobs import Job, JobOutcome, train_job

_POLL_SECONDS = 0.2
_REPORT_SECONDS = 0.3

#: Set in worker processes: the channel on which they report their steps.
_channel: Any = None


class Listener(Protocol):
    """An observer of jobs."""

    def began(self, job: Job) -> None:
        """A job is about to take its first step."""

    def stepped(self, job: Job, step: int) -> None:
        """A job has done ``step`` steps."""

    def ended(self, outcome: JobOutcome) -> None:
        """A job has ended."""


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


def run_jobs(jobs: Sequence[Job], processes: int, listener: Listener) -> list[JobOutcome]:
    """Run ``jobs`` and return their outcomes in any order.

    On an interrupt, the running jobs finish their step and write their results, and no further jobs start. The outcomes
    of all jobs that ran are returned; those that were cut short are marked as interrupted.

    Args:
        jobs: The jobs, started in this order.
        processes: Number of parallel processes, at least 1. With 1, the jobs run in this process.
        listener: Is notified of their progress.
    """
    count = min(processes, len(jobs))
    return _in_this_process(jobs, listener) if count <= 1 else _in_processes(jobs, count, listener)


def _in_this_process(jobs: Sequence[Job], listener: Listener) -> list[JobOutcome]:
    outcomes = []
    for job in jobs:
        listener.began(job)
        outcome = train_job(job, _Forward(job, listener))
        listener.ended(outcome)
        outcomes.append(outcome)
        if outcome.interrupted:
            break
    return outcomes


@dataclass(frozen=True)
class _Forward:
    """Forwards the steps of one job to a listener in the same process."""

    job: Job
    listener: Listener

    def __call__(self, number: int, step: int) -> None:
        del number
        self.listener.stepped(self.job, step)


def _in_processes(jobs: Sequence[Job], count: int, listener: Listener) -> list[JobOutcome]:
    # Threads of torch do not survive a fork, so processes are spawned.
    context = multiprocessing.get_context("spawn")
    channel = context.Queue()
    by_number = {job.number: job for job in jobs}
    outcomes: list[JobOutcome] = []
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(channel,))
    futures: dict[Future[JobOutcome], Job] = {pool.submit(_work, job): job for job in jobs}
    waiting = set(futures)
    try:
        while waiting:
            try:
                done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                # The workers receive the same signal, finish their step and write everything.
                waiting = {future for future in waiting if not future.cancel()}
                continue
            _forward(channel, by_number, listener)
            for future in done:
                outcomes.append(_outcome(future, futures[future]))
                listener.ended(outcomes[-1])
            if any(outcome.interrupted for outcome in outcomes):
                waiting = {future for future in waiting if not future.cancel()}
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        channel.close()
    return outcomes


def _outcome(future: Future[JobOutcome], job: Job) -> JobOutcome:
    try:
        return future.result()
    except BrokenProcessPool:
        return JobOutcome(job, "its process was killed, perhaps for lack of memory; use fewer --jobs")


def _forward(channel: Any, by_number: dict[int, Job], listener: Listener) -> None:
    while True:
        try:
            number, step = channel.get_nowait()
        except queue.Empty:
            return
        job = by_number[number]
        if step == 0:
            listener.began(job)
        else:
            listener.stepped(job, step)


def _start_worker(channel: Any) -> None:
    global _channel
    _channel = channel
    # Between jobs, the parent handles the signal; during a job, the training does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(job: Job) -> JobOutcome:
    last = 0.0

    def stepped(number: int, step: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _REPORT_SECONDS or step == job.steps:
            last = now
            _channel.put((number, step))

    _channel.put((job.number, 0))
    return train_job(job, stepped)
