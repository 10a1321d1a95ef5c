"""The tests that need CUDA, as a section of ``benchmarks/cuda.py``."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import pytest
    from cuda_sections import Task

ROOT = Path(__file__).parents[1]
MARK = "mark.cuda"

#: CPU threads; the tests compute little on the CPU.
THREADS = 4


def tests_section(task: Task) -> None:
    """Run every test marked ``cuda`` in this process, so that the GPU is opened and its kernels are loaded only once.

    Outcomes are reported as they arrive, so that a time limit loses none.
    """
    import pytest

    os.chdir(ROOT)
    torch.set_num_threads(THREADS)
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if MARK in path.read_text(encoding="utf-8")]
    files.sort(key=lambda path: ("engines" not in str(path), str(path)))  # the most important first
    options = ["-q", "--no-header", "--tb=short", "--color=no", "-p", "no:cacheprovider", "-W", "ignore"]
    chosen = ["-o", "addopts=--strict-markers --import-mode=importlib", "-m", "cuda", *map(str, files)]
    outcomes = Outcomes(task)
    ended = int(pytest.main([*options, *chosen], plugins=[outcomes]))
    if ended not in (0, 1, 5):
        outcomes.counts[f"then pytest ended with {ended}"] = 1
    outcomes.emit()


class Outcomes:
    """A plugin that reports the outcome of every test, and stops the tests at the time limit of the section.

    Args:
        task: Instructions for the section.
    """

    def __init__(self, task: Task) -> None:
        self.counts, self._task, self._begun = Counter[str](), task, time.monotonic()
        self._failures: list[tuple[str, str]] = []
        self._session: pytest.Session | None = None
        self._log = (task.raw / "tests.txt").open("w", encoding="utf-8") if task.raw else None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Keep the session, to be able to stop it."""
        self._session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test that ran, or whose setup failed."""
        if report.when != "call" and report.passed:
            return
        self.counts[report.outcome] += 1
        self._note(f"{report.outcome:8} {report.duration:6.2f} s  {report.nodeid}")
        if report.failed:
            self._note(report.longreprtext)
            errors = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
            self._failures.append((report.nodeid, (errors or [""])[0][2:].strip()[:300]))
        self.emit()
        if self._task.over() and self._session is not None:
            self._session.shouldstop = "the time of this section is over"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Report a file that cannot be collected."""
        if report.failed:
            self._failures.append((report.nodeid, str(report.longrepr).strip().splitlines()[-1][:300]))
            self._note(str(report.longrepr))

    def _note(self, text: str) -> None:
        if self._log:
            self._log.write(f"{time.monotonic() - self._begun:6.1f} s  {text}\n")
            self._log.flush()

    def emit(self) -> None:
        """Emit the record of all tests that have run so far."""
        self._task.emit(
            {
                "kind": "tests",
                "section": "tests",
                "counts": dict(self.counts),
                "failures": list(self._failures),
                "seconds": time.monotonic() - self._begun,
            }
        )
