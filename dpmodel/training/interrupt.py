"""Ctrl-C, SIGTERM or SIGHUP during training: the step is finished, everything is written, then the training ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from dpmodel.callbacks.base import Callback

if TYPE_CHECKING:
    from dpmodel.training.run import Run

#: Ctrl-C, the signal that cluster managers send before they kill a process, and that of a closed terminal.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

#: Start of the stop reason of an interrupted run.
INTERRUPTED = "interrupted"


@contextmanager
def handling(
    handler: Callable[[int, FrameType | None], None], signals: Sequence[signal.Signals] = SIGNALS
) -> Iterator[None]:
    """Call ``handler`` for ``signals`` inside the block; does nothing outside the main thread.

    A signal that the process ignores, such as SIGHUP under ``nohup``, stays ignored, except for SIGINT, which a shell
    ignores for every command in the background.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in signals}
    for number, earlier in list(before.items()):
        if earlier is signal.SIG_IGN and number != signal.SIGINT:
            del before[number]
        else:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


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
        with handling(self._handle, signals):
            yield

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
    if stop.interrupted:
        raise KeyboardInterrupt
