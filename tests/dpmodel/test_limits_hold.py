"""Limits on epsilon hold whatever other callbacks do, and whatever was trained before."""

import copy
import json

import pytest
import torch
from torch.utils.data import DataLoader

from dpmodel import Callback, ClipMechanismsFactory, PrivacyMonitorFactory, StateKeeper, poisson_loader
from monitors import BudgetExceededError, BudgetGuard, GaussianEvent, PrivacyFilter
from monitors.errors import UnprotectedUpdateError, UnsupportedEventError
from monitors.ledger import Ledger
from monitors.spent import privacy_spent

LIMIT, DELTA = 3.0, 1e-5


class LessNoise(Callback):
    """Uses a tenth of the noise from a step on."""

    def __init__(self, at):
        self.at = at

    def on_train_step_begin(self, run):
        if run.step == self.at:
            run.plan.noise.schedule = lambda step: 0.1


def guard():
    return BudgetGuard(PrivacyFilter(LIMIT, DELTA))


def monitor():
    return PrivacyMonitorFactory.create("rdp", max_eps=LIMIT, target_delta=DELTA, per_print_times=1000)


@pytest.mark.sample(4)
@pytest.mark.parametrize("limit", [guard, monitor])
@pytest.mark.parametrize("limit_first", [True, False])
def test_a_limit_holds_if_a_callback_changes_the_noise_before_or_after_it(make_model, make_data, limit, limit_first):
    model = make_model()
    model.noise_mech.schedule = lambda step: 20.0
    callbacks = [limit(), LessNoise(3)] if limit_first else [LessNoise(3), limit()]
    model.fit(poisson_loader(make_data(), batch_size=16), epochs=5, callbacks=callbacks)
    assert model.ledger.total == 3
    assert model.privacy_spent(DELTA).epsilon <= LIMIT


def test_all_models_trained_under_one_filter_are_charged_to_it(make_model, make_data):
    spent, shared = Ledger(), guard()
    loader = poisson_loader(make_data(), batch_size=64)
    for _ in range(12):
        model = make_model()
        model.noise_mech.schedule = lambda step: 4.0
        model.fit(loader, epochs=1, callbacks=[shared])
        spent = spent.merge(model.ledger)
    assert shared.filter.ledger.total == spent.total
    assert 0 < spent.total < 12
    assert privacy_spent(spent, DELTA, "rdp").epsilon <= LIMIT


def test_a_model_that_is_trained_again_is_charged_once(make_model, make_data):
    model, other, shared = make_model(), make_model(), guard()
    for trained in (model, other):
        trained.noise_mech.schedule = lambda step: 50.0
    loader = poisson_loader(make_data(), batch_size=16)
    for trained in (model, other, model):
        trained.fit(loader, epochs=2, callbacks=[shared])
    assert shared.filter.ledger.total == model.ledger.total + other.ledger.total == 24


class Releases(Callback):
    """Releases something of its own after a step."""

    def __init__(self, event, at):
        self.event, self.at = event, at

    def on_train_step_end(self, run):
        if run.step == self.at:
            run.ledger.record(self.event)


def _noisy(make_model):
    model = make_model()
    model.noise_mech.schedule = lambda step: 50.0
    return model


def test_a_release_that_does_not_fit_counts_for_all_later_models(make_model, make_data):
    shared, loader = guard(), poisson_loader(make_data(), batch_size=16)
    first, second = _noisy(make_model), _noisy(make_model)
    with pytest.raises(BudgetExceededError, match="is on the ledger and exceeds the privacy filter"):
        first.fit(loader, epochs=2, callbacks=[Releases(GaussianEvent(0.25), 3), shared])
    second.fit(loader, epochs=2, callbacks=[shared])
    assert first.ledger.total == shared.filter.ledger.total == 4
    assert second.ledger.total == 0
    assert shared.filter.spent_share > 1


def test_a_release_between_two_trainings_is_counted(make_model, make_data):
    shared, loader = guard(), poisson_loader(make_data(), batch_size=16)
    first, second = _noisy(make_model), _noisy(make_model)
    first.fit(loader, epochs=1, callbacks=[shared])
    first.ledger.record(GaussianEvent(2.0))
    second.fit(loader, epochs=1, callbacks=[shared])
    assert shared.filter.ledger.total == first.ledger.total + second.ledger.total == 9


def test_trainings_without_a_common_relation_are_refused(make_model, make_data):
    shared = guard()
    adaptive = make_model(clip_mech=ClipMechanismsFactory.create("Gaussian", fraction_stddev=20.0))
    adaptive.noise_mech.schedule = lambda step: 50.0
    adaptive.fit(poisson_loader(make_data(), batch_size=16), epochs=1, callbacks=[shared])
    assert adaptive.ledger.total
    shuffled = make_model(sampling="shuffle")
    with pytest.raises(UnsupportedEventError, match="no single epsilon covers both"):
        shuffled.fit(DataLoader(make_data(), batch_size=16), epochs=1, callbacks=[shared])
    assert not shuffled.ledger.total


def test_a_changed_schedule_is_announced_before_its_steps(make_model, make_data, tmp_path):
    class Cut(Callback):
        def on_train_step_end(self, run):
            if run.step == 6:
                raise KeyboardInterrupt

    def build(network=None):
        torch.manual_seed(3)
        model = make_model()
        model.noise_mech.schedule = lambda step: 5.0
        return model

    loader = poisson_loader(make_data(), batch_size=16)
    model = build()
    with pytest.raises(KeyboardInterrupt):
        model.fit(loader, epochs=3, callbacks=[LessNoise(5), Cut()], keeper=StateKeeper(tmp_path, every_n_steps=12))
    lines = [json.loads(line.split(" ", 1)[1]) for line in (tmp_path / "releases.jsonl").read_text().splitlines()]
    blocks = [(line["step"], sum(times for _, times in line["rows"])) for line in lines if line["kind"] == "block"]
    assert blocks == [(0, 12), (4, 8), (5, 7)]  # an epoch ends at step 4
    resumed = build()
    resumed.fit(loader, epochs=3, keeper=StateKeeper(tmp_path, every_n_steps=12, resume=True))
    assert resumed.ledger.lost.total == 12
    assert resumed.privacy_spent(DELTA).epsilon > model.privacy_spent(DELTA).epsilon


def test_the_ledger_cannot_be_replaced_during_training(make_model, make_data):
    class Forget(Callback):
        def on_train_step_end(self, run):
            run.model.ledger = Ledger()

    model = make_model()
    with pytest.raises(UnprotectedUpdateError, match="ledger was replaced"):
        model.fit(poisson_loader(make_data(), batch_size=16), callbacks=[Forget()])
    assert model.ledger.total == 1
    model.ledger = Ledger()
    assert model.ledger.total == 0


def test_fit_cannot_be_called_while_the_model_trains(make_model, make_data):
    data = make_data()

    class Again(Callback):
        def on_train_step_end(self, run):
            run.model.fit(poisson_loader(data, batch_size=16))

    model = make_model()
    with pytest.raises(UnprotectedUpdateError, match="fit was called while this model is training"):
        model.fit(poisson_loader(data, batch_size=16), callbacks=[Again()])
    assert model.ledger.total == 1
    model.fit(poisson_loader(data, batch_size=16))
    assert model.ledger.total == 5


def test_a_copied_guard_counts_for_itself(make_model, make_data):
    first, loader = guard(), poisson_loader(make_data(), batch_size=16)
    model = _noisy(make_model)
    model.fit(loader, epochs=1, callbacks=[first])
    second = copy.deepcopy(first)
    model.fit(loader, epochs=2, callbacks=[second])
    assert first.filter.ledger.total == 4
    assert second.filter.ledger.total >= model.ledger.total == 12
