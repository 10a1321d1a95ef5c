import multiprocessing
import os
import signal
import threading

import pytest

from dpmodel import Callback, StateKeeper
from dpmodel.data.loader import PrivateLoader
from dpmodel.training.interrupt import InterruptStop, read_with_workers
from monitors.errors import DataError


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

    @pytest.mark.sample(4)
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

    @pytest.mark.slow  # torch notices a dead worker after five seconds
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
    def test_a_worker_that_is_killed(self, make_model, make_data, tmp_path, number):
        class KillWorker(Callback):
            def on_train_step_begin(self, run):
                if run.step == 6:
                    for child in multiprocessing.active_children():
                        os.kill(child.pid, number)

        model, before = make_model(), signal.getsignal(signal.SIGCHLD)
        with pytest.raises(DataError, match=r"the batch of step \d+ could not be read, because a worker"):
            model.fit(
                PrivateLoader(make_data(), 16, num_workers=1),
                epochs=4,
                callbacks=[KillWorker()],
                keeper=StateKeeper(tmp_path, every_n_steps=16),
            )
        assert 6 <= model.ledger.total < 16
        assert before in (signal.SIG_DFL, signal.getsignal(signal.SIGCHLD))
        self.resumed(tmp_path, make_model, make_data)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_dead_worker_ends_a_training_with_an_error_unless_a_signal_has_reached_both(interrupted):
    class Reached(Run):
        stop_reason = "interrupted (SIGTERM)" if interrupted else None

    def read():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    if interrupted:
        assert read_with_workers(Reached(), read, "the batch") is None
    else:
        with pytest.raises(DataError, match=r"the batch could not be read, .*Terminated\. What was released is"):
            read_with_workers(Reached(), read, "the batch")


def test_other_errors_of_a_data_set_are_raised_unchanged():
    def read():
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.")

    with pytest.raises(RuntimeError, match="Caught"):
        read_with_workers(Run(), read, "the batch")
