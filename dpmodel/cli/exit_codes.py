"""Exit codes of the commands."""

from __future__ import annotations

import signal

OK, FAILED, BAD_USAGE = 0, 1, 2


def after_signal(number: int | None) -> int:
    """Exit code of a command that a signal interrupted after it had written everything.

    128 + ``number``, as a shell reports a program that the signal ended, so that a cluster manager sees that the
    command has to be repeated. After Ctrl-C it is 1, as for every other unfinished command.

    Args:
        number: The signal; None if there was none.

    Example:
        >>> after_signal(signal.SIGTERM), after_signal(signal.SIGINT), after_signal(None)
        (143, 1, 1)
    """
    return FAILED if number is None or number == signal.SIGINT else 128 + number
