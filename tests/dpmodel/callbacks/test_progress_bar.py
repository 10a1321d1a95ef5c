import io
import math
import re

import pytest
from rich.console import Console

from dpmodel.callbacks import ProgressBar, Silence
from monitors.errors import UnsupportedEventError


@pytest.fixture
def console():
    return Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)


def test_the_last_line_shows_steps_loss_metric_and_epsilon(console, fake_run):
    fake_run(metrics=[{"accuracy": 0.875}]).train([ProgressBar(console=console)])
    last = console.file.getvalue().split("\r")[-1]
    for part in ("6/6", "epoch 2/2", "loss 0.167", "accuracy 0.8750", "epsilon 0.601 (delta 1e-05)", "left"):
        assert part in last


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_still_shows_every_figure_but_the_delta(fake_run, width):
    narrow = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    fake_run(metrics=[{"accuracy": 0.875}]).train([ProgressBar(console=narrow)])
    shown = " ".join(narrow.file.getvalue().split())
    for part in ("6/6", "left", "loss 0.167", "accuracy 0.8750", "epsilon 0.6"):
        assert part in shown
    assert "delta" not in shown


def test_eighty_columns_hold_one_line_with_an_older_epsilon(fake_run):
    narrow = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    run = fake_run(epochs=1, steps_per_epoch=120, metrics=[{"accuracy": 0.875}])
    run.train([ProgressBar(refresh_seconds=1e-9, console=narrow)])
    frames = narrow.file.getvalue()
    assert "epsilon 5.101 at step 51" in frames
    assert frames.count("\n") == 1, "only the line feed after the last frame"


def test_an_epsilon_of_an_earlier_step_says_so_and_a_fresh_one_does_not(console, fake_run):
    fake_run(epochs=1, steps_per_epoch=5).train([ProgressBar(refresh_seconds=1e-9, console=console)])
    shown = re.findall(r"(\d)/5.*epsilon ([\d.]+(?: at step \d)?) \(", console.file.getvalue().replace("\r", "\n"))
    assert ("1", "0.100") in shown
    assert ("4", "0.100 at step 1") in shown
    assert shown[-1] == ("5", "0.500")
    assert all("at step" in text for step, text in shown if step not in "15")


def test_steps_are_counted_from_the_start_of_the_fit_in_both_figures(console, fake_run):
    run = fake_run(epochs=1, steps_per_epoch=3, first_step=100)
    run.train([ProgressBar(refresh_seconds=1e-9, console=console)])
    assert "epsilon 10.101 at step 1" in console.file.getvalue()


def test_each_epoch_ends_with_the_epsilon_of_its_history_and_asks_no_accountant(console, fake_run):
    run = fake_run(epochs=3, steps_per_epoch=5)
    run.train([ProgressBar(refresh_seconds=60, console=console)])
    shown = console.file.getvalue()
    assert all(f"epsilon {epsilon} (" in shown for epsilon in ("0.500", "1.000", "1.500"))
    assert run.epsilon_asked == 1


def test_an_empty_draw_keeps_the_last_known_loss(console, fake_run):
    class Empty:
        def on_train_step_end(self, run):
            run.loss = math.nan if run.step == 6 else run.loss

    fake_run().train([Empty(), ProgressBar(refresh_seconds=1e-9, console=console)])
    assert "loss 0.2" in console.file.getvalue().split("\r")[-1]
    assert "nan" not in console.file.getvalue()


def test_messages_of_the_run_appear_above_the_bar_and_the_printer_is_restored(console, fake_run):
    class Speaker:
        def on_train_step_end(self, run):
            run.say(f"step {run.step} [not markup]")

    run = fake_run()
    run.train([ProgressBar(console=console), Speaker()])
    assert "step 3 [not markup]" in console.file.getvalue()
    assert run.lines == []
    assert run.printer == run.lines.append


def test_epsilon_is_asked_for_rarely(console, fake_run):
    run = fake_run(epochs=1, steps_per_epoch=500)
    run.train([ProgressBar(refresh_seconds=1e-9, epsilon_every_n_steps=100, console=console)])
    assert 2 <= run.epsilon_asked <= 6


def test_zero_asks_for_no_epsilon(console, fake_run):
    run = fake_run()
    run.train([ProgressBar(epsilon_every_n_steps=0, console=console)])
    assert run.epsilon_asked == 0
    assert "epsilon" not in console.file.getvalue()


def test_the_screen_is_redrawn_by_time_not_by_step(console, fake_run):
    fake_run(epochs=1, steps_per_epoch=2000).train([ProgressBar(refresh_seconds=60, console=console)])
    assert console.file.getvalue().count("epoch 1/1") <= 4


def test_an_epsilon_that_cannot_be_computed_does_not_end_the_training(console, fake_run):
    run = fake_run()

    def refuse(delta=None):
        raise UnsupportedEventError("unknown event")

    run.privacy_spent = refuse
    run.train([ProgressBar(console=console)])
    assert run.step == 6
    assert "epsilon not known (UnsupportedEventError)" in console.file.getvalue()


def test_a_failing_training_leaves_the_screen_in_order(console, fake_run):
    class Fail:
        def on_train_step_end(self, run):
            raise RuntimeError("out of memory")

    bar = ProgressBar(console=console)
    with pytest.raises(RuntimeError, match="out of memory"):
        fake_run().train([bar, Fail()])
    assert bar._bar is None


@pytest.mark.parametrize("wrong", [{"refresh_seconds": 0}, {"epsilon_every_n_steps": -1}])
def test_wrong_settings_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ProgressBar(**wrong)


def test_a_run_shows_one_bar_and_restores_the_printer(console, fake_run):
    other, run = Console(file=io.StringIO(), width=160), fake_run()
    run.train([ProgressBar(console=console), ProgressBar(console=other)])
    assert "6/6" in console.file.getvalue()
    assert other.file.getvalue() == ""
    assert run.printer == run.lines.append


@pytest.mark.parametrize("silence_first", [True, False])
def test_a_silent_run_shows_no_bar(console, fake_run, silence_first):
    callbacks = [Silence(), ProgressBar(console=console)]
    fake_run().train(callbacks if silence_first else callbacks[::-1])
    assert console.file.getvalue() == ""


def test_without_a_terminal_one_line_per_epoch_is_printed_and_the_messages_between(fake_run):
    log = Console(file=io.StringIO(), width=40)
    run = fake_run(epochs=3, metrics=[{"accuracy": 0.875}])
    printer = run.printer
    run.train([ProgressBar(console=log), ProgressBar(console=log)])
    lines = log.file.getvalue().splitlines()
    assert len(lines) == 3
    for epoch, line in enumerate(lines, start=1):
        for part in (f"epoch {epoch}/3", f"step {3 * epoch}/9", "accuracy 0.8750", "loss 0.", "(delta 1e-05)"):
            assert part in line
        assert "at step" not in line
    assert run.printer is printer
