import pytest
import torch

from dpmodel.callbacks import LearningRateScheduler


def rates_of(run):
    class Reader:
        def __init__(self):
            self.rates = []

        def on_train_step_begin(self, run):
            self.rates.append(run.optimizer.param_groups[0]["lr"])

    return Reader()


def test_a_scheduler_by_name_spans_the_training(fake_run):
    run = fake_run(epochs=2, steps_per_epoch=5)
    reader = rates_of(run)
    run.train([LearningRateScheduler("LinearLR", start_factor=1.0, end_factor=0.0), reader])
    assert reader.rates == pytest.approx([0.5 * (1 - step / 10) for step in range(10)])
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


def test_by_epoch_the_rate_holds_within_the_epoch(fake_run):
    run = fake_run(epochs=3, steps_per_epoch=2)
    reader = rates_of(run)
    run.train([LearningRateScheduler("StepLR", interval="epoch", step_size=1, gamma=0.1), reader])
    assert reader.rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005, 0.005])


def test_each_training_starts_again_from_the_same_rate(fake_run):
    run = fake_run(epochs=1, steps_per_epoch=4)
    callback = LearningRateScheduler("CosineAnnealingLR")
    first, second = rates_of(run), rates_of(run)
    run.train([callback, first])
    run.train([callback, second])
    assert first.rates == pytest.approx(second.rates)
    assert first.rates[0] == 0.5


def test_a_scheduler_object_is_stepped(fake_run):
    run = fake_run(epochs=1, steps_per_epoch=3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, gamma=0.5)
    run.train([LearningRateScheduler(scheduler)])
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.5**4)


def test_a_scheduler_of_a_different_optimizer_is_refused_before_the_first_step(fake_run):
    other = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0)
    run = fake_run()
    with pytest.raises(ValueError, match="belongs to a different optimizer"):
        run.train([LearningRateScheduler(torch.optim.lr_scheduler.ExponentialLR(other, gamma=0.5))])
    assert run.ledger.total == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheduler": "LinarLR"}, "did you mean 'LinearLR'"),
        ({"scheduler": "LinearLR", "end_facter": 0.0}, "did you mean 'end_factor'"),
        ({"scheduler": "LinearLR", "start_factor": -1.0}, "cannot be built"),
        ({"scheduler": "LinearLR", "interval": "batch"}, "interval must be one of 'step', 'epoch'"),
        ({"scheduler": 3}, "must be a learning-rate scheduler"),
        ({"scheduler": "ReduceLROnPlateau"}, "needs a measured value"),
    ],
)
def test_wrong_settings_are_refused_immediately(arguments, message):
    with pytest.raises(ValueError, match=message):
        LearningRateScheduler(**arguments)


def test_a_scheduler_object_that_depends_on_a_measured_value_is_refused_immediately(fake_run):
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(fake_run().optimizer)
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau\.step\(\) cannot be called .*'metrics'.* measured value"):
        LearningRateScheduler(scheduler)


def test_arguments_given_with_an_object_are_refused(fake_run):
    scheduler = torch.optim.lr_scheduler.ExponentialLR(fake_run().optimizer, gamma=0.5)
    with pytest.raises(ValueError, match="belong with the name"):
        LearningRateScheduler(scheduler, gamma=0.9)
