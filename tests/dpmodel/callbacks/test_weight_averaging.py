"""The average is validated and kept, and training continues as if nothing were averaged."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import Callback, DPModel, NoiseMechanismsFactory, StateKeeper, WeightAveraging, poisson_loader
from dpmodel.callbacks.registry import build_callback

from ..power_cut import PowerCut

STEPS = 12


def data():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(60, 4, generator=generator), torch.randint(0, 2, (60,), generator=generator))


def model():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    network[0].bias.requires_grad_(False)
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0, seed=5)
    optimizer = torch.optim.SGD([value for value in network.parameters() if value.requires_grad], lr=0.5)
    return DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, metrics="loss", seed=4)


def fit(*callbacks, valid=True, **options):
    trained = model()
    held_out = (torch.ones(8, 4), torch.zeros(8, dtype=torch.int64)) if valid else None
    history = trained.fit(
        poisson_loader(data(), batch_size=10), 2, valid_loader=held_out, callbacks=callbacks, **options
    )
    return trained, history


class Recorder(Callback):
    def __init__(self):
        self.weights = []

    def on_train_step_end(self, run):
        self.weights.append([value.detach().clone() for value in run.network.parameters()])


def values(network):
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def test_the_average_is_that_of_the_weights_of_the_steps():
    seen, averaging = Recorder(), WeightAveraging(decay=0.6)
    start = [value.detach().clone() for value in model().network.parameters()]
    trained, _ = fit(seen, averaging)
    expected = start
    for step, weights in enumerate(seen.weights, start=1):
        decay = min(0.6, (1 + step) / (10 + step))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)]
    assert len(seen.weights) == STEPS
    torch.testing.assert_close(values(trained.network), torch.cat([value.flatten() for value in expected]))
    assert any("moving average" in note for note in trained.ledger.notes)
    assert trained.ledger.violations == ()


def test_training_continues_with_the_weights_themselves():
    plain, averaged = Recorder(), Recorder()
    fit(plain)
    fit(averaged, WeightAveraging(decay=0.9))
    for one, other in zip(plain.weights, averaged.weights, strict=True):
        assert all(map(torch.equal, one, other))


def test_validation_measures_the_average():
    averaging = WeightAveraging(decay=0.9)
    trained, history = fit(averaging)
    x, y = torch.ones(8, 4), torch.zeros(8, dtype=torch.int64)
    assert history[-1].metrics["valid_loss"] == pytest.approx(trained.eval((x, y))["loss"])


def test_the_network_may_keep_its_own_weights():
    averaging, seen = WeightAveraging(decay=0.9, keep=False), Recorder()
    trained, _ = fit(averaging, seen)
    assert all(map(torch.equal, trained.network.parameters(), seen.weights[-1]))
    assert set(averaging.averaged_weights) == {"0.weight", "2.weight", "2.bias"}
    assert trained.ledger.notes == fit(seen)[0].ledger.notes


@pytest.mark.sample(2)
@pytest.mark.parametrize("keep", [False, True])
def test_several_averages_do_not_disturb_the_training_or_each_other(keep):
    plain, seen, several = Recorder(), Recorder(), [WeightAveraging(decay, keep=keep) for decay in (0.5, 0.9)]
    fit(plain)
    trained, history = fit(seen, *several)
    assert all(all(map(torch.equal, one, other)) for one, other in zip(plain.weights, seen.weights, strict=True))
    alone = WeightAveraging(0.9, keep=keep)
    _, alone_history = fit(alone)
    assert all(map(torch.equal, several[1].averaged_weights.values(), alone.averaged_weights.values()))
    assert history[-1].metrics == alone_history[-1].metrics
    final = [value for value in trained.network.parameters() if value.requires_grad]
    assert all(map(torch.equal, final, alone.averaged_weights.values())) == keep
    assert trained.ledger.violations == ()


def test_a_validation_that_fails_leaves_the_weights_of_the_training():
    class Fails(Callback):
        def on_eval_begin(self, run):
            raise RuntimeError("no validation today")

    averaging, seen = WeightAveraging(keep=False), Recorder()
    trained = model()
    with pytest.raises(RuntimeError, match="no validation today"):
        trained.fit(
            poisson_loader(data(), batch_size=10),
            valid_loader=(torch.ones(8, 4), torch.zeros(8, dtype=torch.int64)),
            callbacks=[seen, averaging, Fails()],
        )
    assert all(map(torch.equal, trained.network.parameters(), seen.weights[-1]))
    assert trained.ledger.violations == ()


@pytest.mark.slow
def test_a_resumed_training_keeps_its_average(tmp_path):
    whole, _ = fit(WeightAveraging(decay=0.9), PowerCut(99))
    with pytest.raises(KeyboardInterrupt):
        fit(WeightAveraging(decay=0.9), PowerCut(7), keeper=StateKeeper(tmp_path, every_n_steps=3))
    resumed, _ = fit(WeightAveraging(decay=0.9), PowerCut(99), keeper=StateKeeper(tmp_path, resume=True))
    assert torch.equal(values(whole.network), values(resumed.network))


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5, float("nan")])
def test_a_decay_must_be_in_the_unit_interval(decay):
    with pytest.raises(ValueError, match="decay must be"):
        WeightAveraging(decay)


def test_a_configuration_builds_it_by_name():
    assert build_callback("WeightAveraging", decay=0.5, keep=False).decay == 0.5
