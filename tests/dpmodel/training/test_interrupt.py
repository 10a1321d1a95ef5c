import os
import signal
import threading

import pytest

from dpmodel import Callback, StateKeeper
from dpmodel.data.loader import PrivateLoader
from dpmodel.training.interrupt import InterruptStop


class Run:
    """Remembers why it was stopped."""

    def __init__(self):
        self.reasons = []

    def stop(self, reason):
        self.reasons.append(reason)


def test_the_first_signal_stops_the_run_and_the_second_interrupts_at_once():
    interrupt, run = InterruptStop(), Run()
    with interrupt.listening():
        interrupt.on_train_begin(run)
        os.kill(os.getpid(), signal.SIGINT)
        assert run.reasons == ["interrupted (SIGINT)"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert interrupt.interrupted


def test_before_the_run_begins_a_signal_interrupts_at_once():
    with InterruptStop().listening(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_earlier_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with InterruptStop().listening():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="has no SIGHUP")
@pytest.mark.parametrize("ignored", [False, True], ids=["a closed terminal", "nohup"])
def test_a_closed_terminal_stops_the_run_unless_the_process_ignores_it(ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        interrupt, run = InterruptStop(), Run()
        with interrupt.listening():
            interrupt.on_train_begin(run)
            os.kill(os.getpid(), signal.SIGHUP)
        assert run.reasons == ([] if ignored else ["interrupted (SIGHUP)"])
    finally:
        signal.signal(signal.SIGHUP, before)


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


@pytest.fixture
def _pythons_own_handler():
    """Handles Ctrl-C as in a program that a user runs; tests in the background may have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class TestBrokenOffBetweenTwoSteps:
    """Nothing is lost if the process survives to write."""

    def resumed(self, folder, make_model, make_data):
        model = make_model()
        model.fit(PrivateLoader(make_data(), 16), epochs=4, keeper=StateKeeper(folder, every_n_steps=16, resume=True))
        assert (model.ledger.total, model.ledger.lost.total) == (16, 0)

    @pytest.mark.usefixtures("_pythons_own_handler")
    def test_ctrl_c(self, make_model, make_data, tmp_path):
        class Press(Callback):
            def on_train_step_begin(self, run):
                if run.step == 6:
                    os.kill(os.getpid(), signal.SIGINT)

        model, before = make_model(), signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            model.fit(
                PrivateLoader(make_data(), 16),
                epochs=4,
                callbacks=[Press()],
                keeper=StateKeeper(tmp_path, every_n_steps=16),
            )
        assert signal.getsignal(signal.SIGINT) is before
        assert 6 <= model.ledger.total <= 7
        self.resumed(tmp_path, make_model, make_data)

    @pytest.mark.parametrize("hook", ["on_train_step_end", "on_train_step_begin", "on_eval_end", "on_train_epoch_end"])
    def test_a_callback_that_fails(self, make_model, make_data, tmp_path, hook):
        def fail(self, run):
            if run.step == 8:
                raise OSError("disk full")

        callback = type("Failing", (Callback,), {hook: fail})()
        with pytest.raises(OSError, match="disk full"):
            make_model().fit(
                PrivateLoader(make_data(), 16),
                epochs=4,
                valid_loader=make_data(n=8),
                callbacks=[callback],
                keeper=StateKeeper(tmp_path, every_n_steps=16),
            )
        self.resumed(tmp_path, make_model, make_data)
