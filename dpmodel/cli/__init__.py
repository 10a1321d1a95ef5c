"""The command line, ``dpmodel``. Commands parse, call and print; they hold no logic."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dpmodel.distributed.launch import launched_processes, leave
from dpmodel.distributed.launcher import end_with_torchrun


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 ok, 1 failed, 2 bad usage or configuration.

    Args:
        arguments: Default: ``sys.argv[1:]``.
    """
    end_with_torchrun()
    # Threads that wait for work leave their cores to others: with spinning threads, two trainings on two cores take
    # several times as long as one after the other. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        # Imports take most of a short command's time, so Ctrl-C must be handled while they run.
        from dpmodel.cli.application import run

        code = run(arguments)
    except KeyboardInterrupt:
        print("dpmodel: error: interrupted", file=sys.stderr)
        code = 1
    if launched_processes() > 1:
        leave(code)
    raise SystemExit(code)
