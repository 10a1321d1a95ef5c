"""The command line: ``dpmodel train / eval / budget``. Commands parse, call and print; they hold no logic."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 ok, 1 failed, 2 bad usage or configuration.

    Args:
        arguments: Default: those of the process.
    """
    from dpmodel.cli.application import run

    raise SystemExit(run(arguments))
