"""Law: whether a network is accepted does not depend on its random draws."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory, validate

from .architectures import ARCHITECTURES, CLASSES

EXAMPLES = 6

#: Starts of each network in this file, and of each public one: a thousand in total with ``DPMODEL_FUZZ=full``. 300 find
#: a verdict that differs in one start of a hundred with a probability of 95 %.
STARTS, PUBLIC_STARTS = (103, 15) if os.environ.get("DPMODEL_FUZZ") == "full" else (29, 8)


class Gumbel(nn.Module):
    """Draws its hidden code, with a straight-through gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.decoder(F.gumbel_softmax(self.encoder(x), tau=1.0, hard=True))


class Autoencoder(nn.Module):
    """A variational network that draws even in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 6), nn.Linear(3, CLASSES)

    def forward(self, x):
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return self.decoder(mean + (0.5 * log_variance).exp() * torch.randn_like(mean))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(5, 8, num_layers=2, dropout=0.3, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class Jittered(nn.Module):
    """Adds faint noise to its inputs in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, CLASSES))

    def forward(self, x):
        return self.layers(x + 1e-4 * torch.randn_like(x) if self.training else x)


def rows(*shape: int) -> Callable[[int], tuple[torch.Tensor, ...]]:
    return lambda count: (torch.randn(count, *shape),)


OWN = {
    "Gumbel": (Gumbel, rows(5)),
    "VAE": (Autoencoder, rows(5)),
    "LSTM": (Recurrent, rows(7, 5)),
    "attention": (Attention, rows(7, 8)),
    "faint noise": (Jittered, rows(5)),
    "RReLU": (lambda: nn.Sequential(nn.Linear(5, 8), nn.RReLU(), nn.Linear(8, CLASSES)), rows(5)),
    "faint dropout": (lambda: nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.001), nn.Linear(64, CLASSES)), rows(5)),
    "dropout": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES)), rows(5)),
    "feature dropout": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.Dropout2d(0.3),
            nn.SELU(),
            nn.AlphaDropout(0.1),
            nn.Flatten(),
            nn.Linear(288, CLASSES),
        ),
        rows(3, 8, 8),
    ),
}

#: Starts of a network that may use a different engine than the other starts.
MOST_OTHERS = 4 if os.environ.get("DPMODEL_FUZZ") == "full" else 2

PUBLIC = ("BERT", "DistilBERT", "ConvNeXt", "GPT-2", "ALBERT")

NETWORKS = {name: (*made, STARTS) for name, made in OWN.items()} | {
    entry.name: (entry.network, entry.inputs, PUBLIC_STARTS) for entry in ARCHITECTURES if entry.name in PUBLIC
}


def start(network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[tuple[str, ...], bool]:
    """The messages and ledger notes of two steps with fresh secret randomness, and whether a slower engine was used."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0)
    # Poisson batches may be too small for a comparison.
    model = DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, sampling="shuffle")
    data = TensorDataset(*inputs, torch.arange(EXAMPLES) % CLASSES)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        model.fit(DataLoader(data, batch_size=EXAMPLES // 2, shuffle=True))
    assert model.ledger.total == 2
    lines = said.getvalue().splitlines()
    kept = [line for line in lines if "which is slower" not in line]
    return (*kept, *model.ledger.notes), len(kept) < len(lines)


def test_hundreds_of_starts_are_tested():
    assert sum(starts for _, _, starts in NETWORKS.values()) >= 300


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_draws_gets_the_same_verdict_in_every_start(name):
    make, inputs, starts = NETWORKS[name]
    outcomes, slower = set(), 0
    for _ in range(starts):
        torch.seed()
        network = make()
        examples = inputs(EXAMPLES)
        assert validate(network, examples[0] if len(examples) == 1 else examples) == []
        words, slow = start(network, examples)
        outcomes.add(words)
        slower += slow
    assert len(outcomes) == 1, outcomes
    # In about one of a thousand starts, rounding moves a unit of a network across a kink.
    assert min(slower, starts - slower) <= MOST_OTHERS
