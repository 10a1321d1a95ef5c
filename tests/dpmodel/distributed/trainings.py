"""What the ranks of the tests do; each function runs in a separate process (see ``launched``)."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import Callback, ClipMechanismsFactory, DPModel, NoiseMechanismsFactory


def data(n=60, features=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator)
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def gaussian(seed=0):
    return NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0, seed=seed)


def model(noise="Gaussian", weights_seed=0, lr=0.5, **options):
    made = network(weights_seed)
    noise = gaussian() if noise == "Gaussian" else noise
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(made.parameters(), lr=lr, momentum=0.9)
    return DPModel(made, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, **options)


def weights(trained):
    return torch.cat([value.detach().flatten() for value in trained.network.parameters()])


def digest(trained):
    return hashlib.sha256(weights(trained).numpy().tobytes()).hexdigest()


def loader(n=60, batch_size=12):
    return DataLoader(data(n), batch_size=batch_size)


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_step_end(self, run):
        self.seen.append(run.loss)


def trained(epochs=2, n=60, batch_size=12, callbacks=(), **options):
    losses = Losses()
    made = model(**options)
    history = made.fit(loader(n, batch_size), epochs, valid_loader=data(20, seed=2), callbacks=[losses, *callbacks])
    return {
        "weights": weights(made).tolist(),
        "digest": digest(made),
        "ledger": made.ledger.digest(),
        "epsilon": made.privacy_spent(1e-5).epsilon,
        "losses": losses.seen,
        "bound": made.clip_mech.norm_bound,
        "notes": list(made.ledger.notes),
        "history": [[row.loss, row.epsilon, sorted(row.metrics.items())] for row in history],
    }


def quick(rank, folder):
    """Everything that a single launch can show quickly."""
    # Rank 1 begins with different weights: it gets those of rank 0.
    return {
        "secret": trained(weights_seed=rank),
        "plain": trained(noise=None, seed=5),
        "groups": trained(noise=None, seed=5, micro_batches=4),
        "shuffle": trained(noise=None, seed=5, sampling="shuffle"),
        "small": trained(noise=None, seed=5, batch_size=1, epochs=1, n=30),
        "adaptive": trained(clip_mech=ClipMechanismsFactory.create("Gaussian", fraction_stddev=0.1)),
    }
