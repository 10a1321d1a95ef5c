"""The list of checks: complete, in order, and the same as the page of the documentation."""

import random
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset, IterableDataset

from dpmodel import poisson_loader
from dpmodel.callbacks import Silence
from dpmodel.config import make_config
from dpmodel.distributed.ranks import Ranks
from dpmodel.preflight import CHECKS, Check, network, trial
from dpmodel.preflight.refusal import HAS_READ
from dpmodel.preflight.table import page
from dpmodel.runs.train import train_from_config
from dpmodel.statistics import private_mean_and_variance
from mechanisms.noise import Gaussian
from monitors import GaussianEvent, Ledger
from monitors.errors import ConfigError, DistributedError, UnprotectedUpdateError

TINY = {
    "data": {"name": "synthetic", "shape": [1, 4, 4], "num_train": 60, "num_test": 20, "num_classes": 3},
    "network": "linear",
    "optimizer": {"name": "SGD", "lr": 0.5},
    "privacy": {"noise_multiplier": 2.0},
    "training": {"epochs": 1, "batch_size": 20},
    "output": {"curve": False},
}
PAGE = Path(__file__).parents[3] / "docs" / "refused.md"


def test_every_check_has_its_function_with_a_sentence_about_it():
    for check in CHECKS:
        assert getattr(trial, check.name).__doc__.endswith(".")
        assert check.reads in trial.CONTEXTS


def test_the_page_of_the_documentation_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m dpmodel.preflight.table docs/refused.md"


def test_every_refusal_is_a_sentence_with_a_remedy():
    refusals = [refusal for check in CHECKS for refusal in check.refusals]
    assert len({refusal.what for refusal in refusals}) == len(refusals)
    assert all(refusal.what.endswith(".") and refusal.instead.endswith(".") for refusal in refusals)
    assert not any("|" in refusal.what + refusal.instead for refusal in refusals)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


class Rows(Dataset):
    def __init__(self, of):
        self.of, self.x, self.y = of, torch.randn(64, 4), torch.randint(0, 3, (64,))

    def __len__(self):
        return 64

    def __getitem__(self, row):
        return self.of(self, row)


class Centre(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Weak(Gaussian):
    """Adds a tenth of the noise that it states."""

    def add(self, summed, step):
        before = summed.flat_grad.clone()
        return before + 0.1 * (super().add(summed, step) - before)


def remembering(self, row):
    self.total = getattr(self, "total", 0.0) + self.x[row].sum()
    return self.x[row] + self.total, self.y[row]


def mixing(examples):
    x, y = torch.utils.data.default_collate(examples)
    return x - x.mean(0), y


def padded(examples):
    longest = max(len(x) for x, _ in examples)
    rows = [torch.cat([x, torch.zeros(longest - len(x))]) for x, _ in examples]
    return torch.stack(rows)[:, :, None], torch.stack([y for _, y in examples])


@contextmanager
def coarse():
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def centred(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes), Centre())


class Mean(nn.Linear):
    def __init__(self):
        super().__init__(1, 3)

    def forward(self, x):
        return super().forward(torch.tanh(x)).mean(1)


def lengths(self, row):
    return torch.randn(2 + row % 5), self.y[row]


class Plain(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def loss_class(model, data):
    model.loss_fn = nn.CrossEntropyLoss
    return data


def counted():
    """Noise that was solved for beside an earlier release."""
    noise = Gaussian(initial_noise_multiplier=1.0)
    noise.spent_before = Ledger().record(GaussianEvent(1.0))
    return noise


#: Name of a check -> options of a model that it refuses.
MODELS = {
    "augmentation": lambda: {"augmentation": "random_crop"},
    "layers": lambda: {"network": nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))},
    "run": lambda: {"micro_batches": 5},
    "optimizer": lambda: {"optimizer": torch.optim.SGD(nn.Linear(4, 3).parameters(), lr=0.1)},
    "network": lambda: {"network": nn.Sequential(nn.Linear(4, 3), Centre())},
    "targets": lambda: {"network": nn.Linear(4, 1)},
    "loss": lambda: {"loss_fn": lambda outputs, targets: outputs.detach().sum()},
    "mechanisms": lambda: {"noise_mech": Weak(initial_noise_multiplier=1.0)},
    "calibration": lambda: {"noise_mech": counted()},
    "collation": lambda: {"network": Mean()},
    "metrics": lambda: {"metrics": "mae"},
}
#: Name of a check -> training data that it refuses, of a model and a data set.
DATA = {
    "arguments": loss_class,
    "loader": lambda model, data: DataLoader(Stream(), 16),
    "memory": lambda model, data: Rows(remembering),
    "rows": lambda model, data: Rows(lambda self, row: (self.x[row] + self.x[row - 1], self.y[row])),
    "batches": lambda model, data: poisson_loader(data, batch_size=16, collate_fn=mixing),
    "collation": lambda model, data: poisson_loader(Rows(lengths), batch_size=16, collate_fn=padded),
}


class Differing(Ranks):
    """Two ranks of which the other states different values."""

    size = 2

    def meet(self, purpose, *facts):
        raise DistributedError("rank 0 and other ranks differ")


@contextmanager
def differing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpmodel.model.current_ranks", Differing)
        yield


#: Name of a check -> a setting of torch, or of the process group, that it refuses.
AROUND = {"modes": Plain, "engine": coarse, "ranks": differing}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_each_check_raises_an_error_that_the_list_states(make_model, make_data, check, monkeypatch):
    called, call, name = [], Check.__call__, check.name
    monkeypatch.setattr(Check, "__call__", lambda self, trial: (called.append(self), call(self, trial))[1])
    model, data = make_model(**MODELS.get(name, dict)()), make_data()
    given = DATA.get(name, lambda model, data: data)(model, data)
    loader = poisson_loader(given, batch_size=16) if isinstance(given, Dataset) else given
    valid = {"validation_data": data, "metrics": make_data(8)}.get(name)
    with AROUND.get(name, nullcontext)(), pytest.raises((ValueError, RuntimeError)) as caught:
        model.fit(loader, valid_loader=valid)
    assert called == list(CHECKS[: CHECKS.index(check) + 1])
    assert type(caught.value) in {check.error, *(refusal.error for refusal in check.refusals)}
    assert (HAS_READ in str(caught.value)) == (check.reads != "settings")
    assert model.ledger.total == 0


def test_statistics_that_used_the_number_of_rows_are_refused_where_it_is_private(make_model, make_data, tmp_path):
    ledger, data = Ledger(), make_data()
    bounds = {"noise_multiplier": 4.0, "norm_bound": 1.0, "square_bound": 1.0}
    layer = private_mean_and_variance(data, ledger=ledger, **bounds).normalise()
    ledger.save(tmp_path / "ledger.json")
    same = [ledger, ledger.copy(), Ledger().merge(ledger), Ledger.load(tmp_path / "ledger.json")]
    for options in (*({"ledger": one} for one in same), {"network": nn.Sequential(layer, nn.Linear(4, 3))}):
        with pytest.raises(UnprotectedUpdateError, match="which num_examples_public=90 keeps private"):
            make_model(**options).fit(poisson_loader(data, batch_size=16, num_examples_public=90))
    assert ledger.total == 2


def test_a_training_from_a_configuration_probes_its_network_once(tmp_path, monkeypatch):
    probes = []
    probe = network._probe
    monkeypatch.setattr(network, "_probe", lambda *given: probes.append(given) or probe(*given))
    train_from_config(make_config(TINY), tmp_path / "run", callbacks=[Silence()])
    assert len(probes) == 1


def test_a_layer_that_only_a_probe_finds_is_refused_at_its_place_in_the_configuration(tmp_path):
    config = make_config({**TINY, "network": {"module": f"{__name__}:centred"}})
    with pytest.raises(ConfigError, match=r"^configuration: network: [\s\S]*the output of one example depends on"):
        train_from_config(config, tmp_path / "run", callbacks=[Silence()])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("held_out", [tuple, lambda pair: tuple(part.numpy() for part in pair), list])
def test_a_label_out_of_range_in_a_validation_pair_is_refused_before_any_budget_is_spent(make_model, loader, held_out):
    x, y = torch.randn(300, 4), torch.zeros(300, dtype=torch.int64)
    y[-1] = 7
    model = make_model()
    with pytest.raises(ValueError, match="target 7 at row 299 is out of range"):
        model.fit(loader, valid_loader=held_out((x, y)))
    assert model.ledger.total == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_refusal_leaves_all_random_generators_as_they_were(make_model, workers):
    class Augmented(Rows):
        own = np.random.default_rng(3)

        def __getitem__(self, row):
            jitter = torch.rand(4) + random.random() + np.random.rand() + self.own.random()
            return self.x[row] + jitter, self.y[row]

    def mixed(examples):
        x, y = torch.utils.data.default_collate(examples)
        return x + torch.rand(()) + x.mean(0), y

    def states():
        _, keys, *rest = np.random.get_state()
        return torch.get_rng_state().tolist(), random.getstate(), keys.tolist(), rest, Augmented.own.bit_generator.state

    model, loader = make_model(), DataLoader(Augmented(None), 16, collate_fn=mixed, num_workers=workers)
    held_out = DataLoader(Rows(lambda data, row: (data.x[row], data.y[row])), 16)
    before = states()
    with pytest.raises(ValueError, match="collate_fn"):
        model.fit(loader, valid_loader=held_out)
    assert states() == before
    assert model.ledger.total == 0
