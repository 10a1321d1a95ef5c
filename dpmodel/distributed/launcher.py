"""The end of torchrun, which its ranks notice."""

from __future__ import annotations

import os
import signal
import threading
import time

#: Time that a process whose parent has died has to finish its step and to save.
GRACE_SECONDS = 4.0

_LOOK_SECONDS = 0.5

#: What torchrun alone tells its processes: other launchers may end before those that they have started.
_VARIABLE = "TORCHELASTIC_RUN_ID"


class LauncherWatch(threading.Thread):
    """Ends this process when the process that started it has ended: torchrun ends its ranks, unless it is killed.

    The process gets SIGTERM, which finishes the step and saves, as if torchrun had passed it on. It is ended after
    ``GRACE_SECONDS`` if it is not done by then; its write-ahead journal charges the steps that it had announced.

    Args:
        launcher: ID of the process that started this one.
    """

    def __init__(self, launcher: int) -> None:
        super().__init__(daemon=True, name="dpmodel launcher watch")
        self.launcher = launcher

    def run(self) -> None:
        """Wait for the end of the launcher."""
        while os.getppid() == self.launcher:
            time.sleep(_LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os._exit(1)


def end_with_torchrun() -> None:
    """Start the watch if torchrun has started this process. Call it early: what ended before cannot be noticed."""
    if os.environ.get(_VARIABLE):
        LauncherWatch(os.getppid()).start()
