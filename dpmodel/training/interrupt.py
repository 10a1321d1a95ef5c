"""Ctrl-C, SIGTERM or SIGHUP during training: the step is finished, everything is written, then the training ends."""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from dpmodel.callbacks.base import Callback
from monitors.errors import DataError

if TYPE_CHECKING:
    from dpmodel.training.run import Run

#: Ctrl-C, the signal that cluster managers send before they kill a process, and that of a closed terminal.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

#: How the errors of torch about a dead worker process begin.
_DEAD_WORKER = "DataLoader worker (pid"

#: Seconds to wait for a signal to this process after a worker was killed: a signal to a process group reaches both.
_PATIENCE = 0.5

T = TypeVar("T")

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
        self.signal: signal.Signals | None = None

    @property
    def interrupted(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal is not None

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
        self.signal = signal.Signals(number)
        self.run.stop(f"{INTERRUPTED} ({self.signal.name})")


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


def read_with_workers(run: Run, action: Callable[[], T], what: str) -> T | None:
    """The result of ``action``, which reads data; None if an interruption has also ended its worker processes.

    Raises:
        DataError: A worker process was killed, and this one was not interrupted.
    """
    try:
        return action()
    except (RuntimeError, OSError, EOFError) as error:
        if not (str(error).startswith(_DEAD_WORKER) or _in_connection(error)):
            raise
        time.sleep(_PATIENCE)
        if str(run.stop_reason).startswith(INTERRUPTED):
            return None
        raise DataError(
            f"{what} could not be read, because a worker process has ended: {str(error).rstrip('. ')}. What was "
            "released is charged. Resume the training, with fewer workers if the memory does not suffice"
        ) from error


def _in_connection(error: BaseException) -> bool:
    """Whether a batch was lost on its way: a dead worker no longer hands over the memory of a batch that it made."""
    innermost = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return str(innermost.f_globals.get("__name__")).startswith("multiprocessing.")


@contextmanager
def finishing_despite_workers() -> Iterator[None]:
    """Let the death of a worker process interrupt the reading of a batch only, not the step in progress.

    torch raises an error from the handler of SIGCHLD, wherever the program is. Without it, the error comes a few
    seconds later, when a batch is missing.
    """
    child = getattr(signal, "SIGCHLD", None)  # not on Windows
    if child is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(child, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(child, before)
