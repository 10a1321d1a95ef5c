"""The privacy statements of a model, and what it leaves behind."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from dpmodel import (
    Callback,
    ClipMechanismsFactory,
    PrivacyMonitorFactory,
)
from monitors.errors import (
    UnsupportedEventError,
)


def test_epsilon_is_zero_before_training_and_covers_all_fits_after(make_model, loader):
    model = make_model()
    assert model.privacy_spent(1e-5).epsilon == 0
    model.fit(loader, epochs=1)
    once = model.privacy_spent(1e-5).epsilon
    model.fit(loader, epochs=1)
    assert model.privacy_spent(1e-5).epsilon > once > 0
    assert model.ledger.total == 8


def test_a_ledger_that_is_passed_on_keeps_its_relation_and_sampling(make_model, loader):
    shuffled, model = make_model(sampling="shuffle", micro_batches=4), make_model()
    shuffled.fit(loader, epochs=1)
    model.ledger = shuffled.ledger
    assert model.privacy_spent(1e-5).sampling == "disjoint batches, no amplification"
    model.fit(loader, epochs=1)
    spent = model.privacy_spent(1e-5)
    assert spent.relation == "zero out one example"
    assert "disjoint batches" in spent.sampling
    assert "Poisson" in spent.sampling


def test_a_training_that_shares_no_relation_with_its_ledger_is_refused_before_any_budget_is_spent(make_model, loader):
    shuffled = make_model(sampling="shuffle")
    shuffled.fit(loader, epochs=1)
    adaptive = make_model(clip_mech=ClipMechanismsFactory.create("Gaussian", fraction_stddev=0.5))
    adaptive.ledger = shuffled.ledger.copy()
    with pytest.raises(UnsupportedEventError, match="no single epsilon covers both"):
        adaptive.fit(loader, epochs=1)
    assert adaptive.ledger == shuffled.ledger


def test_two_simultaneous_trainings_on_one_ledger_share_no_partition(make_model, loader):
    first, second = make_model(sampling="shuffle"), make_model(sampling="shuffle")
    second.ledger = first.ledger

    class Second(Callback):
        def on_train_epoch_end(self, run):
            if run.epoch == 1:
                second.fit(loader, epochs=3)

    first.fit(loader, epochs=4, callbacks=[Second()])
    partitions = {event.partition for event, _ in first.ledger}
    assert len(partitions) == 7


def test_an_epsilon_for_a_length_chosen_during_training_says_so(make_model, loader):
    class Chosen(Callback):
        def on_train_epoch_end(self, run):
            run.stop("enough")

    model = make_model()
    model.fit(loader, epochs=2, callbacks=[Chosen()])
    assert any("stopped before its planned end" in note for note in model.privacy_spent(1e-5).notes)
    whole, limited, none = make_model(), make_model(), make_model()
    whole.fit(loader, epochs=1, callbacks=[Chosen()])  # its end was the planned one
    limited.fit(loader, epochs=3, callbacks=[PrivacyMonitorFactory.create("rdp", max_eps=5.0)])
    none.fit(loader, epochs=3, callbacks=[PrivacyMonitorFactory.create("rdp", max_eps=0.05)])
    assert none.ledger.total == 0 < limited.ledger.total < 12
    assert whole.ledger.notes == limited.ledger.notes == none.ledger.notes == ()


def test_a_failed_step_leaves_no_unnoised_sum_for_the_optimizer(make_model, make_data):
    class Keeping(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["previous"] = parameter.grad

    class Failing(nn.CrossEntropyLoss):
        failing, calls = False, itertools.count()

        def forward(self, outputs, targets):
            if self.failing and next(self.calls) == 2:  # some chunks of the batch are in the sum by then
                raise RuntimeError("on the way")
            return super().forward(outputs, targets)

    class AfterTwoSteps(Callback):
        def on_train_step_end(self, run):
            loss.failing = run.step >= 2

    network, loss = nn.Linear(4, 3), Failing()
    optimizer = Keeping(network.parameters(), lr=0.1)
    model = make_model(network, loss_fn=loss, optimizer=optimizer, engine="bookkeeping", physical_batch_size=16)
    with pytest.raises(RuntimeError, match="on the way"):
        model.fit(DataLoader(make_data(n=64), batch_size=64), epochs=20, callbacks=[AfterTwoSteps()])
    assert model.ledger.total == 2
    assert all(not bool(state["previous"].any()) for state in optimizer.state.values())
