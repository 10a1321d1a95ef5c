"""Starts a command as a copy of this process, which has imported the modules before: much faster than a new process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kill_hook.sitecustomize import name_runs, trace_steps

from dpmodel.cli.application import run
from dpmodel.distributed.launcher import end_with_torchrun


class Process(Protocol):
    """A started command, as ``subprocess.Popen`` is one."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """The exit code; None if it has not ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""


class Copy:
    """A copy of this process that does ``work``, in a session of its own.

    Args:
        work: Its exit code is the result.
        variables: Of its environment.
        folder: Where it works.
        output: File for what it writes.
    """

    def __init__(self, work: Callable[[], int], variables: dict[str, str], folder: Path, output: Path) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.setsid()
            with output.open("ab") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            os.environ.update(variables)
            os.chdir(folder)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            trace_steps(sys.modules["dpmodel.training.step"])
            name_runs(sys.modules["dpmodel.runs.train"])
            code = work()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code; None if it has not ended."""
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        end = time.monotonic() + (1e9 if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.01)
        return self.returncode or 0


def run_command(arguments: list[str]) -> int:
    """``dpmodel`` with these arguments; its workers are copies, too."""
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment]
    return run(arguments)


def run_ranks(arguments: list[str]) -> int:
    """``dpmodel`` with these arguments in two processes with a Gloo group, started and ended as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "copies"}
    ranks = [_rank(rank, common, arguments) for rank in range(2)]

    def end(*_: object) -> None:
        for rank in ranks:
            if rank in running:
                os.kill(rank, signal.SIGTERM)

    running, failed = set(ranks), 0
    signal.signal(signal.SIGTERM, end)
    while running:
        process, status = os.wait()
        running.discard(process)
        if os.waitstatus_to_exitcode(status) and not failed:
            failed = 1
            end()
    return failed


def _rank(rank: int, variables: dict[str, str], arguments: list[str]) -> int:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.environ.update({**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            end_with_torchrun()
            code = run(arguments)
        finally:
            os._exit(code)
    return process
