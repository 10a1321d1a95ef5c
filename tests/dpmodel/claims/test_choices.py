"""A choice that follows a private value leaves a note; showing values and schedules leave none."""

import pytest
import torch
from torch import nn

from dpmodel import (
    Callback,
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    LossMonitor,
    PrivacyMonitorFactory,
    ProgressBar,
    poisson_loader,
)
from dpmodel.callbacks.learning_rate import LEFT_PLAN


@pytest.fixture
def fitted(make_model, make_data):
    def fit(*callbacks, epochs=3):
        network = nn.Linear(4, 3)
        network.options, network.queue = {"scale": 1.0}, []
        model = make_model(network, optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.5))
        valid = make_data(n=8)
        model.fit(poisson_loader(make_data(), batch_size=16), epochs, valid_loader=valid, callbacks=callbacks)
        return model

    return fit


def slower(run):
    for group in run.optimizer.param_groups:
        group["lr"] *= 0.5


def less_momentum(run):
    run.optimizer.param_groups[0]["momentum"] = 0.1


def less_noise(run):
    run.plan.noise.noise_multiplier = lambda step: 0.9


def larger_bound(run):
    run.plan.clip._norm_bound = 2.0


def other_weights(run):
    run.network.options["scale"] *= 0.5


def other_queue(run):
    run.network.queue.append(1.0)


def nothing(run):
    pass


READS = {
    "run.loss": lambda run: run.loss,
    "history row": lambda run: run.history[-1].loss if len(run.history) else None,
    "history column": lambda run: run.history["loss"] if len(run.history) else None,
    "history file": lambda run: run.history.to_dict(),
}


class Steers(Callback):
    """Reads, and acts in the same call or, with ``later``, in the next one."""

    def __init__(self, read, act, later=False):
        self.read, self.act, self.later, self.calls = read, act, later, 0

    def on_train_epoch_end(self, run):
        self.calls += 1
        if self.calls == 2 or not self.later:
            self.act(run)
        self.read(run)
        if not self.later:
            self.act(run)


@pytest.mark.sample(24)
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    "read", [pytest.param(name, marks=[pytest.mark.slow] if name != "run.loss" else []) for name in READS]
)
@pytest.mark.parametrize(
    ("act", "what"),
    [
        (slower, "the learning rate"),
        (other_weights, "the state of the network or the loss"),
        (other_queue, "the state of the network or the loss"),
        (less_momentum, "the option 'momentum' of the optimizer"),
        (less_noise, "the noise"),
        (larger_bound, "the norm bound"),
    ],
)
def test_a_choice_after_reading_the_training_loss_is_noted_once(fitted, read, act, what, later):
    model = fitted(Steers(READS[read], act, later))
    if later is False and act in (less_momentum, less_noise, larger_bound):
        # The first of the two changes is made before anything was read, and the second one changes nothing.
        assert model.ledger.notes == ()
        return
    expected = f"Steers changed {what} after a callback had read the training loss: this choice is not accounted for"
    assert model.ledger.notes == (expected,)


class Reads(Callback):
    def on_train_step_end(self, run):
        self.seen = run.loss


class Acts(Callback):
    def on_train_epoch_end(self, run):
        slower(run)


def test_a_choice_is_noted_even_if_a_different_callback_read_the_loss(fitted):
    assert any("Acts changed the learning rate" in note for note in fitted(Reads(), Acts()).ledger.notes)


class Holds(Callback):
    run = None

    def on_train_begin(self, run):
        Holds.run = run


@pytest.mark.parametrize("follows", [True, False])
def test_a_schedule_that_follows_the_training_loss_leaves_a_note(make_model, make_data, follows):
    def factor(step):
        return 0.9**step if not follows or Holds.run is None or Holds.run.loss is None else 0.1

    network, Holds.run = nn.Linear(4, 3), None
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    schedule = LearningRateScheduler(torch.optim.lr_scheduler.LambdaLR(optimizer, factor))
    model = make_model(network, optimizer=optimizer)
    model.fit(poisson_loader(make_data(), batch_size=16), 2, callbacks=[Holds(), schedule])
    assert model.ledger.notes == ((LEFT_PLAN,) if follows else ())


@pytest.mark.parametrize(
    "callbacks",
    [
        lambda path: [Reads()],
        lambda path: [Acts()],
        lambda path: [Reads(), LearningRateScheduler("LinearLR", start_factor=1.0, end_factor=0.1)],
        lambda path: [LossMonitor(100), ProgressBar(), CSVLogger(path / "history.csv"), Acts()],
        lambda path: [PrivacyMonitorFactory.create("rdp"), EarlyStopping("loss", patience=50), Acts()],
        lambda path: [Steers(lambda run: run.metrics, slower), Steers(lambda run: run.history[-1].metrics, slower)],
        lambda path: [Steers(READS["run.loss"], nothing)],
    ],
)
@pytest.mark.sample(7)
def test_showing_schedules_and_validation_metrics_leave_no_note(fitted, callbacks, tmp_path, capsys):
    assert fitted(*callbacks(tmp_path)).ledger.notes == ()


def test_a_schedule_on_the_training_loss_is_noted(fitted):
    class OnPlateau(Callback):
        def on_train_begin(self, run):
            self.schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(run.optimizer, patience=0, threshold=1e9)

        def on_train_epoch_end(self, run):
            self.schedule.step(run.loss)

    assert any("OnPlateau changed the learning rate" in note for note in fitted(OnPlateau()).ledger.notes)


def test_what_was_read_in_one_training_is_forgotten_in_the_next(make_model, make_data):
    callback = Steers(READS["run.loss"], nothing)
    model = make_model()
    loader = poisson_loader(make_data(), batch_size=16)
    model.fit(loader, callbacks=[callback])
    callback.read, callback.act = nothing, slower
    model.fit(loader, callbacks=[callback])
    assert model.ledger.notes == ()


def test_the_loss_may_be_read_after_training(fitted):
    model = fitted()
    slower(type("Run", (), {"optimizer": model.optimizer})())
    assert model.ledger.notes == ()


class Hard(torch.utils.data.Dataset):
    """Rows with a difficulty that may be set."""

    def __init__(self, rows):
        self.rows, self.difficulty = rows, 1.0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        x, y = self.rows[row]
        return x * self.difficulty, y


class Curriculum(Callback):
    def __init__(self, data):
        self.data = data

    def on_train_epoch_end(self, run):
        self.data.difficulty *= 1 + run.loss


def test_a_curriculum_that_follows_the_training_loss_is_noted(make_model, make_data):
    data, model = Hard(make_data()), make_model()
    model.fit(poisson_loader(data, batch_size=16), 2, callbacks=[Curriculum(data)])
    assert [note for note in model.ledger.notes if "Curriculum changed the state of the data after" in note]
