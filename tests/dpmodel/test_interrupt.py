import os
import signal
import threading

import pytest

from dpmodel.interrupt import InterruptStop


class Run:
    """Remembers why it was stopped."""

    def __init__(self):
        self.reasons = []

    def stop(self, reason):
        self.reasons.append(reason)


def test_the_first_signal_stops_the_run_and_the_second_breaks_off():
    interrupt, run = InterruptStop(), Run()
    with interrupt.listening():
        interrupt.on_train_begin(run)
        os.kill(os.getpid(), signal.SIGINT)
        assert run.reasons == ["interrupted (SIGINT)"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert interrupt.interrupted


def test_before_the_run_begins_a_signal_breaks_off_at_once():
    with InterruptStop().listening(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_the_handlers_of_others_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with InterruptStop().listening():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_of_the_main_thread_it_does_nothing():
    failures = []

    def work():
        try:
            with InterruptStop().listening():
                pass
        except ValueError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
