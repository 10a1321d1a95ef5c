"""Trainings with augmentation: what they charge, and that the views are those of the examples."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory, poisson_loader
from dpmodel.augmentation import Augmentation, RandomCrop
from dpmodel.config import make_config
from dpmodel.runs.build import build_training
from mechanisms.engines import Batch
from mechanisms.engines.base import Engine
from monitors.errors import ConfigError, DataError

NETWORK = (nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 3))
BOTH = ["random_crop", "horizontal_flip"]


def data(n=48, shape=(1, 8, 8)):
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(n, *shape, generator=generator), torch.arange(n) % 3)


def trained(seed=3, dataset=None, network=None, epochs=2, noise_seed=5, callbacks=(), **options):
    torch.manual_seed(0)
    network = network or nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 3))
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0, seed=noise_seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    model = DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, seed=seed, **options)
    model.fit(poisson_loader(dataset or data(), batch_size=12), epochs, callbacks=callbacks)
    return model


def weights(model):
    return torch.cat([value.detach().flatten() for value in model.network.parameters()])


@pytest.mark.sample(2)
@pytest.mark.parametrize("micro_batches", [None, 4])
def test_the_ledger_does_not_depend_on_the_number_of_views(micro_batches):
    ledgers = [
        trained(micro_batches=micro_batches, seed=None, noise_seed=0, epochs=1, **options).ledger
        for options in ({}, *({"augmentation": BOTH, "augmentation_multiplicity": k} for k in (1, 2, 7)))
    ]
    assert all(ledger == ledgers[0] for ledger in ledgers)
    assert ledgers[0].total == 4


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"physical_batch_size": 1}, {"physical_batch_size": 5}, {"static_shapes": True}])
def test_how_a_batch_is_cut_changes_no_view(options):
    views = {"augmentation": BOTH, "augmentation_multiplicity": 3}
    torch.testing.assert_close(weights(trained(**views, **options)), weights(trained(**views)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_fast_engines_train_alike():
    one, other = (trained(engine=name, augmentation=BOTH, augmentation_multiplicity=3) for name in ("vmap", "auto"))
    assert "'bookkeeping'" in other.explain_engine()
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-5, atol=1e-6)


def test_augmentation_changes_the_training_and_seeds_repeat_it():
    plain, once, again = (trained(**options) for options in ({}, {"augmentation": BOTH}, {"augmentation": BOTH}))
    assert not torch.equal(weights(plain), weights(once))
    assert torch.equal(weights(again), weights(once))


class Identity:
    numbers = 0

    def __call__(self, images, numbers):
        return images


@pytest.mark.sample(2)
@pytest.mark.parametrize("multiplicity", [1, 3])
def test_views_that_are_the_examples_train_as_without(multiplicity):
    found = trained(augmentation=Identity(), augmentation_multiplicity=multiplicity)
    torch.testing.assert_close(weights(found), weights(trained()), rtol=1e-5, atol=1e-6)


def test_views_differ_from_step_to_step_and_from_view_to_view(monkeypatch):
    seen, original = [], Engine.clipped_sum

    def watched(self, network, loss_fn, batch, clip, out=None):
        if out is not None:
            seen.append(batch.views.numbers)
        return original(self, network, loss_fn, batch, clip, out)

    monkeypatch.setattr(Engine, "clipped_sum", watched)
    trained(augmentation=BOTH, augmentation_multiplicity=4, engine="vmap", seed=None, noise_seed=0)
    numbers = torch.cat([part.flatten() for part in seen])
    assert len(seen) == 8
    assert {part.shape[1:] for part in seen} == {(4, 3)}
    assert len(numbers.unique()) > 0.99 * len(numbers)
    assert float(numbers.mean()) == pytest.approx(0.5, abs=0.05)


def test_evaluation_and_prediction_see_the_examples_themselves():
    model = trained(augmentation=BOTH, augmentation_multiplicity=2)
    x, y = data().tensors
    with torch.no_grad():
        expected = model.network(x)
    assert torch.equal(model.predict(x), expected)
    assert model.eval((x, y))["loss"] == pytest.approx(float(nn.functional.cross_entropy(expected, y)), rel=1e-5)


def test_an_empty_batch_is_a_step_of_noise_alone():
    model = trained(dataset=data(12), epochs=1, augmentation=BOTH, seed=None, noise_seed=0)
    assert model.ledger.total == 1
    drawn = Augmentation(BOTH, 3).drawn(Batch(torch.zeros(0, 1, 8, 8), torch.zeros(0)))
    assert drawn.made().x.shape == (0, 3, 1, 8, 8)


class WrongShape(Identity):
    def __call__(self, images, numbers):
        return images[:, :, 1:]


class NotFinite(Identity):
    def __call__(self, images, numbers):
        return images / 0.0


class ByValue(Identity):
    def __call__(self, images, numbers):
        return images if float(images.mean()) > 0 else -images


class Mixup(Identity):
    """Mixes with a random image of a pool."""

    numbers = 1

    def __init__(self, pool):
        self.pool = pool

    def __call__(self, images, numbers):
        others = self.pool[(numbers[:, 0] * len(self.pool)).long()]
        return 0.7 * images + 0.3 * others


class MixupOfGlobals(Identity):
    def __call__(self, images, numbers):
        return 0.7 * images + 0.3 * POOL[:1]


POOL = data().tensors[0]


class Counting(Identity):
    calls = 0

    def __init__(self):
        self.seen = []

    def __call__(self, images, numbers):
        self.calls += 1
        self.seen.append(len(images))
        return images


def test_what_an_augmentation_keeps_is_restored_after_each_call():
    counting = Counting()
    Augmentation(counting, 3).drawn(Batch(torch.rand(5, 1, 4, 4), torch.zeros(5))).made()
    assert (counting.calls, counting.seen) == (0, [])


def test_an_augmentation_may_mix_with_public_images():
    trained(augmentation=[Mixup(torch.rand(7, 1, 8, 8))])


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (Mixup(data().tensors[0].clone()), "holds examples of the training data"),
        (MixupOfGlobals(), "holds examples of the training data"),
        (WrongShape(), r"makes views of shape \(1, 7, 8\)"),
        (NotFinite(), "NaN or infinite"),
        (ByValue(), "cannot be isolated"),
        (RandomCrop(8), "padding=8 must be below"),
    ],
)
def test_an_augmentation_that_does_not_work_is_refused_before_the_first_release(augmentation, message):
    network = nn.Sequential(*NETWORK)
    model = DPModel(
        network,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(network.parameters(), lr=0.1),
        noise_mech=NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0),
        augmentation=augmentation,
    )
    with pytest.raises(DataError, match=message):
        model.fit(poisson_loader(data(), batch_size=12))
    assert model.ledger.total == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"augmentation": None, "augmentation_multiplicity": 2},
            "without augmentation would compute the same gradient",
        ),
        ({"augmentation": BOTH, "augmentation_multiplicity": 0}, "augmentation_multiplicity must be an integer"),
        ({"augmentation": BOTH, "augmentation_multiplicity": 2.0}, "augmentation_multiplicity must be an integer"),
        ({"augmentation": []}, "at least one transform"),
        ({"augmentation": ["random_crip"]}, "did you mean 'random_crop'"),
        ({"augmentation": [{"padding": 3}]}, "mappings with a name and arguments"),
        ({"augmentation": {"name": "random_crop", "pading": 3}}, "did you mean 'padding'"),
        ({"augmentation": RandomCrop}, "objects with numbers and __call__"),
        ({"augmentation": [lambda images, numbers: images]}, "objects with numbers and __call__"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        trained(**options)


CONFIG = {
    "data": {"name": "synthetic", "shape": [1, 8, 8], "num_train": 60, "num_test": 20, "num_classes": 3},
    "augmentation": {"transforms": [{"name": "random_crop", "padding": 2}, "horizontal_flip"], "multiplicity": 4},
    "network": "linear",
    "optimizer": {"name": "SGD", "lr": 0.5},
    "privacy": {"target_epsilon": 3.0},
    "training": {"epochs": 2, "batch_size": 20},
}


def test_a_configuration_states_transforms_and_multiplicity_and_its_epsilon_does_not_depend_on_them():
    training = build_training(make_config(CONFIG))
    assert repr(training.model.augmentation) == (
        "Augmentation([RandomCrop(padding=2), HorizontalFlip()], multiplicity=4)"
    )
    plain = build_training(make_config({key: value for key, value in CONFIG.items() if key != "augmentation"}))
    assert plain.model.augmentation is None
    assert training.plan.ledger(6) == plain.plan.ledger(6)
    assert training.settings["augmentation.multiplicity"] == 4
    assert "augmentation" not in " ".join(plain.settings)  # folders of earlier versions can be resumed


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"transforms": ["random_crip"]}, r"augmentation\.transforms\.0: unknown augmentation 'random_crip'"),
        ({"transforms": [{"name": "random_crop", "padding": 0}]}, "padding must be an integer of at least 1"),
        ({"transforms": []}, "transforms"),
        ({"transforms": ["random_crop"], "multiplicity": 0}, "multiplicity must be an integer of at least 1"),
        ({"transforms": ["random_crop"], "number": 3}, "number"),
    ],
)
def test_wrong_settings_of_a_configuration_are_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        build_training(make_config({**CONFIG, "augmentation": section}))
