"""The tests that need CUDA, as a section of ``benchmarks/cuda.py``."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cuda_sections import Task

ROOT = Path(__file__).parents[1]
MARK = "mark.cuda"
OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
SUMMARY = re.compile(r"^(?:FAILED|ERROR) (?P<name>.+?)(?: - (?P<why>.*))?$")

#: Processes that share the GPU while testing, where pytest-xdist is installed.
PROCESSES = 6


def tests_section(task: Task) -> None:
    """Run every test marked ``cuda``; outcomes are counted as they come, so that a limit loses none."""
    files = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if MARK in path.read_text(encoding="utf-8"))
    spread = ["-n", str(PROCESSES)] if importlib.util.find_spec("xdist") else []
    command = [
        *(sys.executable, "-m", "pytest", "-v", "-rfE", "--tb=short", "--color=no", "-p", "no:cacheprovider"),
        *("-o", "addopts=--strict-markers --import-mode=importlib", "-m", "cuda", *spread, *map(str, files)),
    ]
    begun = time.monotonic()
    counts, failures, lines, stopped = Counter[str](), {}, [], False
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=os.setpgrp
    ) as process:
        timer = Timer(task.seconds, _end, [process])
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            summary = SUMMARY.match(line.rstrip())
            if summary:
                failures[summary["name"]] = (summary["why"] or "")[:300]
            elif "::" in line and (outcome := OUTCOME.search(line)):
                counts[outcome[1].lower()] += 1
                if outcome[1] in ("FAILED", "ERROR"):
                    name = OUTCOME.split(line[line.index("tests/") :])[0].strip()
                    failures.setdefault(name, "")
        timer.cancel()
    stopped = process.returncode not in (0, 1, 5)
    if task.raw:
        (task.raw / "tests.txt").write_text("".join(lines), encoding="utf-8")
    if stopped:
        counts[f"then pytest ended with {process.returncode}"] = 1
        print("".join(lines[-15:]), flush=True)
    task.emit(
        {
            "kind": "tests",
            "section": "tests",
            "counts": dict(counts),
            "failures": list(failures.items()),
            "seconds": time.monotonic() - begun,
        }
    )


def _end(process: subprocess.Popen[str]) -> None:
    """End pytest and the processes that it has begun."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
