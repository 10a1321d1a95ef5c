"""Ctrl-C or SIGTERM during training: the step is finished, everything is written, then the training ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from dpmodel.callbacks.base import Callback

if TYPE_CHECKING:
    from dpmodel.training.run import Run

#: Ctrl-C, and the signal that cluster managers send before they kill a process.
SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: Start of the stop reason of an interrupted run.
INTERRUPTED = "interrupted"


class InterruptStop(Callback):
    """Turns the first signal into a stop before the next step; a second one interrupts at once."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.interrupted = False

    def on_train_begin(self, run: Run) -> None:
        """Note the run to stop."""
        self.run = run

    @contextmanager
    def listening(self, signals: Sequence[signal.Signals] = SIGNALS) -> Iterator[None]:
        """Handle the signals inside the block; does nothing outside the main thread, which receives no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.run is None or self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.run.stop(f"{INTERRUPTED} ({signal.Signals(number).name})")


@contextmanager
def finishing_steps(run: Run) -> Iterator[None]:
    """Ctrl-C stops ``run`` after the current step and raises at the end of the block; a second one raises at once.

    Does nothing if the program already handles Ctrl-C itself.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    stop = InterruptStop()
    stop.on_train_begin(run)
    with stop.listening([signal.SIGINT]):
        yield
    elsewhere = run.ranks.size > 1 and (run.stop_reason or "").startswith(INTERRUPTED)
    if stop.interrupted or elsewhere:
        raise KeyboardInterrupt
