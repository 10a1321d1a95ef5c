"""Trainings of a small network that can be interrupted and resumed."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import (
    ClipMechanismsFactory,
    DPModel,
    EarlyStopping,
    LearningRateScheduler,
    NoiseMechanismsFactory,
)
from dpmodel.callbacks import Silence
from dpmodel.data.loader import PrivateLoader
from dpmodel.optimizers import build_optimizer

EPOCHS, STEPS_PER_EPOCH = 3, 4
STEPS = EPOCHS * STEPS_PER_EPOCH

CLIPS = {
    "fixed": {"name": "Fixed"},
    "adaptive": {"name": "Gaussian", "decay_policy": "Geometric", "learning_rate": 0.3, "fraction_stddev": 0.2},
}
SCHEDULES = {
    "none": None,
    "falling": ("LinearLR", "step", {"start_factor": 1.0, "end_factor": 0.1}),
    "cycle": ("OneCycleLR", "step", {"max_lr": 0.5}),
    "by epoch": ("ExponentialLR", "epoch", {"gamma": 0.5}),
}

#: The case of most tests; with ``build(SECRET, seed=0)`` its randomness is secret.
SECRET = {
    "clip": "adaptive",
    "sampling": "poisson",
    "micro_batches": None,
    "optimizer": "Momentum",
    "schedule": "none",
    "decay": False,
}


class Shifted:
    """Adds a random number to each view."""

    numbers = 1

    def __call__(self, examples, numbers):
        return examples + numbers


def data():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(24, 4, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())


def build(case, seed=3):
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 2))
    clip = dict(CLIPS[case["clip"]])
    if clip["name"] == "Gaussian":
        clip["seed"] = seed
    noise = {"name": "AdaGaussian", "decay_policy": "Exp", "noise_decay_rate": 0.05}
    return DPModel(
        network,
        nn.CrossEntropyLoss(),
        build_optimizer(case["optimizer"], network.parameters(), lr=0.1),
        micro_batches=case["micro_batches"],
        norm_bound=0.5,
        noise_mech=NoiseMechanismsFactory.create(
            **(noise if case["decay"] else {"name": "Gaussian"}), initial_noise_multiplier=0.8, seed=seed
        ),
        clip_mech=ClipMechanismsFactory.create(**clip),
        metrics=["accuracy", "loss"],
        sampling=case["sampling"],
        seed=seed or None,
        engine="vmap",
        static_shapes=case.get("static_shapes", False),
        augmentation=Shifted() if case.get("views") else None,
        augmentation_multiplicity=case.get("views") or 1,
    )


def callbacks_of(case):
    schedule = SCHEDULES[case["schedule"]]
    found = [EarlyStopping("accuracy", patience=50)]
    return found if schedule is None else [*found, LearningRateScheduler(schedule[0], schedule[1], **schedule[2])]


def fit(model, case, *extra, keeper=None, epochs=EPOCHS):
    loader = PrivateLoader(data(), 6, sampling=case["sampling"])
    callbacks = [Silence(), *callbacks_of(case), *extra]
    return model.fit(loader, epochs, valid_loader=data(), callbacks=callbacks, keeper=keeper)
