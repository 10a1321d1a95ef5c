"""Law: public architectures are trained without changes, and their sums match those of single examples."""

from __future__ import annotations

import contextlib
import io
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory, poisson_loader
from mechanisms.clipping import Fixed
from mechanisms.engines import ENGINES, Batch
from mechanisms.engines.base import ROUNDING_MARGIN
from mechanisms.units import ClippedUnit

from .architectures import ARCHITECTURES, CLASSES

EXAMPLES, BOUND, TOLERANCE = 6, 1.0, 1e-5 + ROUNDING_MARGIN

#: Architectures that need a slower engine; this one uses a table outside of its layer.
SLOWER = {"DeBERTa": "vmap"}

#: Names and engines of the trained architectures, for the message of a failure.
TAKEN: dict[str, str] = {}


#: Architectures whose family has a different member among the quick tests.
RELATED = {
    *("ResNeXt", "MobileNetV2", "MobileNetV3", "MNASNet", "Swin V2", "MaxViT", "AlexNet"),
    *("RoBERTa", "ALBERT", "ELECTRA", "OPT", "Mistral", "Qwen2", "BART", "BEiT", "ConvNeXt V2", "Swin of transformers"),
}


def gallery():
    slow = {entry.name for entry in ARCHITECTURES if entry.slow} | RELATED
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(entry, id=entry.name, marks=marks[entry.name in slow]) for entry in ARCHITECTURES]


def table():
    return "engines so far:\n" + "\n".join(f"  {name:24s} {engine}" for name, engine in TAKEN.items())


def train(network, *rows):
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0)
    model = DPModel(network, nn.CrossEntropyLoss(), optimizer, norm_bound=BOUND, noise_mech=noise)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        model.fit(poisson_loader(TensorDataset(*rows), batch_size=EXAMPLES), epochs=2)
    return model, said.getvalue()


@contextlib.contextmanager
def no_fused_attention():
    """Evaluation mode has an attention kernel without a derivative, which training never uses."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def one_at_a_time(network, inputs, y):
    """The clipped sum by plain autograd."""
    parameters = [value for value in network.parameters() if value.requires_grad]
    total = torch.zeros(sum(value.numel() for value in parameters), dtype=parameters[0].dtype)
    for row in range(len(y)):
        loss = F.cross_entropy(network(*(value[row : row + 1] for value in inputs)), y[row : row + 1])
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        flat = torch.cat(
            [
                (torch.zeros_like(value) if grad is None else grad).flatten()
                for value, grad in zip(parameters, found, strict=True)
            ]
        )
        total += flat * min(1.0, BOUND / float(flat.norm()))
    return total


def clipped_sum(engine, network, inputs, y):
    clip = Fixed()
    clip.start(BOUND)
    batch = Batch(inputs[0] if len(inputs) == 1 else inputs, y)
    made = ENGINES.create(engine, ClippedUnit(1, EXAMPLES))
    return made.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip).flat_grad


def test_the_gallery_is_large_enough():
    assert sum(not entry.slow for entry in ARCHITECTURES) >= 25


@pytest.mark.slow
@pytest.mark.parametrize("architecture", gallery())
def test_a_public_architecture_is_trained_privately_without_changes(architecture):
    network, inputs = architecture.network(), architecture.inputs(EXAMPLES)
    y = torch.arange(EXAMPLES) % CLASSES
    model, said = train(network, *inputs, y)
    explained = model.explain_engine()
    engine = re.match(r"engine '(\w+)'", explained).group(1)
    TAKEN[architecture.name] = engine
    print(f"{architecture.name}: {explained.splitlines()[0]}")
    assert engine == SLOWER.get(architecture.name, "bookkeeping"), explained
    assert model.ledger.total == 2, table()
    assert math.isfinite(model.privacy_spent(1e-5).epsilon), table()
    assert not [note for note in (*model.ledger.notes, said) if "not verified" in note or "not compared" in note], (
        table()
    )
    # Use double precision: in single precision, normalisations over few positions round too much.
    network.eval().double()
    inputs = [value.double() if value.is_floating_point() else value for value in inputs]
    with no_fused_attention():
        expected = one_at_a_time(network, inputs, y)
        found = clipped_sum(engine, network, inputs, y)
    off = float((found - expected).norm() / expected.norm())
    assert off <= TOLERANCE, f"{engine} is off by {off:.1e}\n{table()}"
