"""Runs cases in a child process: a crash or a hang is the failure of one case, and memory is bounded."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

#: Seconds after which a case counts as hanging; it takes less than one on an idle machine.
PATIENCE = 120

#: Memory that a child may add to its parent's.
MEMORY = 3 * 2**30


def failures(check: Callable[[int], None], numbers: Iterable[int]) -> list[str]:
    """What goes wrong in ``check(number)``, one text per failing number: a failed assertion, a crash, or a hang."""
    left, found = list(numbers), []
    while left:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _carry_out(check, left, writer)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8", errors="replace") as stream:
            lines = stream.read().splitlines()
        _, status = os.waitpid(child, 0)
        begun = [line for line in lines if line.startswith("begun ")]
        found += [line.removeprefix("failed ") for line in lines if line.startswith("failed ")]
        if status == 0:
            break
        code = os.waitstatus_to_exitcode(status)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        number = left[len(begun) - 1]
        found.append(f"{number}: the process ended with {how}")
        left = left[len(begun) :]
    return found


def _carry_out(check: Callable[[int], None], numbers: list[int], writer: int) -> None:
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.stdout = sys.stderr = io.StringIO()
    try:
        for number in numbers:
            os.write(writer, f"begun {number}\n".encode())
            signal.alarm(PATIENCE)
            try:
                check(number)
            except BaseException as error:
                last = traceback.extract_tb(error.__traceback__)[-3:]
                places = " < ".join(f"{os.path.basename(one.filename)}:{one.lineno}" for one in reversed(last))
                text = f"failed {number}: {type(error).__name__}: {str(error)[:400]!r} [{places}]\n"
                os.write(writer, text.encode("utf-8", "replace"))
            signal.alarm(0)
    finally:
        with contextlib.suppress(BaseException):
            os.close(writer)
        os._exit(0)
