import pytest

from dpmodel.callbacks import LossMonitor


def test_every_step_is_printed_by_default_in_the_form_of_mindspore(fake_run):
    run = fake_run(epochs=2, steps_per_epoch=2).train([LossMonitor()])
    assert run.lines == [
        "epoch: 1 step: 1, loss is 1",
        "epoch: 1 step: 2, loss is 0.5",
        "epoch: 2 step: 1, loss is 0.333333",
        "epoch: 2 step: 2, loss is 0.25",
    ]


def test_a_line_is_printed_every_few_steps_across_epochs(fake_run):
    run = fake_run(epochs=3, steps_per_epoch=3).train([LossMonitor(per_print_times=4)])
    assert [line.split(",")[0] for line in run.lines] == ["epoch: 2 step: 1", "epoch: 3 step: 2"]


def test_steps_are_counted_from_the_start_of_this_training(fake_run):
    run = fake_run(epochs=1, steps_per_epoch=2, first_step=100).train([LossMonitor(2)])
    assert [line.split(",")[0] for line in run.lines] == ["epoch: 1 step: 2"]


def test_zero_prints_nothing(fake_run):
    assert fake_run().train([LossMonitor(0)]).lines == []


@pytest.mark.parametrize("loss", [None, float("nan")])
def test_an_empty_batch_has_no_loss_and_the_line_says_so(fake_run, loss):
    run = fake_run()
    run.step, run.loss = 1, loss
    LossMonitor().on_train_step_end(run)
    assert run.lines == ["epoch: 1 step: 1, loss is not known (no example was drawn)"]


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "1"])
def test_a_wrong_number_is_refused(wrong):
    with pytest.raises(ValueError, match=r"per_print_times must be an integer of at least 0, got "):
        LossMonitor(wrong)
