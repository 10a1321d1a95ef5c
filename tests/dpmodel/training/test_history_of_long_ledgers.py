"""The history of a training with more rows than are read anew after each epoch."""

import pytest
import torch

import dpmodel.training.run as run_module
import monitors.accountant as accountants
from dpmodel import DPModel, NoiseMechanismsFactory, PrivacyMonitorFactory, poisson_loader
from dpmodel.saving.keeper import StateKeeper

STEPS, EPOCHS = 5, 4


class Stop:
    def on_train_step_end(self, run):
        if run.step == 2 * STEPS:
            run.stop("for the test")


def trained(folder, *callbacks, resume=False):
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 2)
    noise = NoiseMechanismsFactory.create("AdaGaussian", initial_noise_multiplier=2.0, noise_decay_rate=1e-3, seed=7)
    model = DPModel(network, torch.nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), 0.1), noise_mech=noise)
    data = torch.utils.data.TensorDataset(torch.zeros(20, 2), torch.zeros(20, dtype=torch.int64))
    monitor = PrivacyMonitorFactory.create("rdp", per_print_times=2)
    keeper = StateKeeper(folder, every_n_steps=STEPS, resume=resume)
    return model, model.fit(
        poisson_loader(data, batch_size=4), epochs=EPOCHS, callbacks=[monitor, *callbacks], keeper=keeper
    )


@pytest.fixture
def short_limit(monkeypatch):
    for module in (run_module, accountants):
        monkeypatch.setattr(module, "MOST_ROWS", 3)


def test_a_resumed_training_has_the_history_of_an_uninterrupted_one(tmp_path, short_limit):
    _, whole = trained(tmp_path / "whole")
    trained(tmp_path / "halves", Stop())
    _, resumed = trained(tmp_path / "halves", Stop(), resume=True)
    assert resumed.column("epsilon") == whole.column("epsilon")


def test_each_epsilon_of_the_history_is_a_bound_and_the_last_is_exact(tmp_path, short_limit):
    model, history = trained(tmp_path / "run")
    for row in history:
        exact = accountants.ACCOUNTANTS.get("rdp")().epsilon(model.ledger.head(row.step), history.delta)
        assert exact <= row.epsilon <= exact * 1.005
    assert history[-1].epsilon == model.privacy_spent(history.delta, "rdp").epsilon
