import contextlib
import types

import pytest
import torch

from dpmodel.callbacks import CallbackList
from dpmodel.training.history import History
from monitors import events, ledger


class FakeRun:
    """The part of a training that callbacks see; ``train`` calls their hooks."""

    def __init__(self, epochs=2, steps_per_epoch=3, first_step=0, metrics=None):
        self.network = torch.nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.5, momentum=0.9)
        self.ledger = ledger.Ledger()
        self.model = types.SimpleNamespace(
            network=self.network,
            optimizer=self.optimizer,
            ledger=self.ledger,
            clip_mech=types.SimpleNamespace(norm_bound=1.5),
            steps_done=first_step,
            metrics=types.SimpleNamespace(names=tuple((metrics or [{}])[0])),
        )
        self.history = History(delta=1e-5)
        self.step = self.first_step = first_step
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.planned_steps = first_step + epochs * steps_per_epoch
        self.epoch = 1
        self.loss = None
        self.metrics = {}
        self.has_validation = bool(metrics)
        self.noise_multiplier, self.norm_bound = 1.1, 1.5
        self.stop_reason = None
        self.lines = []
        self.printer = self.lines.append
        self.epsilon_asked = 0
        self._validations = list(metrics or [])

    @property
    def recent_loss(self):
        return self.loss

    def stop(self, reason):
        self.stop_reason = self.stop_reason or reason

    def say(self, text):
        self.printer(text)

    @contextlib.contextmanager
    def post_processing(self, what):
        self.ledger.add_note(what)
        yield

    def privacy_spent(self, delta=None):
        self.epsilon_asked += 1
        return types.SimpleNamespace(epsilon=0.1 * self.step, delta=delta or 1e-5)

    def train(self, callbacks):
        listeners = CallbackList(callbacks)
        listeners.notify("on_train_begin", self)
        try:
            for epoch in range(1, self.epochs + 1):
                self.epoch = epoch
                self._one_epoch(listeners)
                if self.stop_reason:
                    break
        finally:
            listeners.notify("on_train_end", self)
        return self

    def _one_epoch(self, listeners):
        listeners.notify("on_train_epoch_begin", self)
        for _ in range(self.steps_per_epoch):
            listeners.notify("on_train_step_begin", self)
            self.ledger.record(events.GaussianEvent(self.noise_multiplier))
            self.optimizer.step()
            self.step += 1
            self.loss = 1.0 / self.step
            listeners.notify("on_train_step_end", self)
        if self._validations:
            listeners.notify("on_eval_begin", self)
            self.metrics = self._validations[min(self.epoch, len(self._validations)) - 1]
            listeners.notify("on_eval_end", self)
        self.history.append(
            epoch=self.epoch, step=self.step, loss=self.loss, metrics=self.metrics, epsilon=self.step * 0.1
        )
        listeners.notify("on_train_epoch_end", self)


@pytest.fixture
def fake_run():
    return FakeRun
