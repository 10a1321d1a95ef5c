"""Networks that return several tensors, or a loss: trained, evaluated, or refused with a message about the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from monitors.errors import DataError, UnsupportedLoaderError


class Named(NamedTuple):
    scores: torch.Tensor
    note: Any


@dataclass
class Record:
    scores: torch.Tensor
    note: Any = None


class Cache:
    def __init__(self, values):
        self.values = values


class Returning(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.head, self.make = nn.Linear(4, 3), make

    def forward(self, x, *labels):
        return self.make(self.head(x), *labels)


BESIDE = {
    "none": (lambda scores: (scores, None), lambda outputs: outputs[0]),
    "number": (lambda scores: {"scores": scores, "heads": 2}, lambda outputs: outputs["scores"]),
    "batch size": (lambda scores: (scores, len(scores)), lambda outputs: outputs[0]),
    "named tuple": (lambda scores: Named(scores, None), lambda outputs: outputs.scores),
    "data class": (lambda scores: Record(scores), lambda outputs: outputs.scores),
    "cache": (lambda scores: (Cache(scores), scores), lambda outputs: outputs[1]),
    "mask of all": (lambda scores: (scores, torch.ones(5, 5)), lambda outputs: outputs[0]),
}


@pytest.mark.sample(21)
@pytest.mark.parametrize("engine", ["bookkeeping", "vmap", "loop"])
@pytest.mark.parametrize("kind", BESIDE)
def test_values_beside_the_outputs_are_kept(make_model, make_data, kind, engine):
    make, scores_of = BESIDE[kind]
    data, network = make_data(n=20), Returning(make)
    model = make_model(
        network, loss_fn=lambda outputs, targets: F.cross_entropy(scores_of(outputs), targets), engine=engine
    )
    model.fit(DataLoader(data, 10), valid_loader=make_data(n=9))
    assert model.ledger.total == 2
    x, y = data.tensors
    expected = F.cross_entropy(network.head(x), y).item()
    for size in (1, 5, 20):
        assert model.eval(data, batch_size=size)["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap", "loop"])
@pytest.mark.parametrize("micro_batches", [None, 2])
@pytest.mark.sample(6)
def test_a_loss_that_the_network_computes_from_labels_is_that_of_each_example(
    make_model, make_data, engine, micro_batches
):
    def make(scores, labels):
        return {"loss": F.cross_entropy(scores, labels), "scores": scores}

    x, y = make_data(n=20).tensors
    data, network = TensorDataset(x, y, y), Returning(make)
    model = make_model(
        network,
        loss_fn=lambda outputs, targets: outputs["loss"],
        engine=engine,
        micro_batches=micro_batches,
        metrics=["accuracy", "loss"],
    )
    model.fit(DataLoader(data, 10))
    scores = network.head(x)
    for size in (1, 7, 20):
        found = model.eval(data, batch_size=size)
        assert found["loss"] == pytest.approx(float(F.cross_entropy(scores, y)), rel=1e-4)
        assert found["accuracy"] == pytest.approx(float((scores.argmax(1) == y).float().mean()))


def test_a_network_that_returns_only_its_loss_is_trained_without_metrics_of_outputs(make_model, make_data):
    x, y = make_data(n=20).tensors
    data = TensorDataset(x, y, y)
    model = make_model(Returning(F.cross_entropy), loss_fn=lambda outputs, targets: outputs)
    model.fit(DataLoader(data, 10))
    assert model.eval(data)["loss"] == pytest.approx(float(F.cross_entropy(model.network.head(x), y)), rel=1e-4)
    model = make_model(Returning(F.cross_entropy), loss_fn=lambda outputs, targets: outputs, metrics="accuracy")
    with pytest.raises(DataError, match="the network returns one number for 4 examples"):
        model.fit(DataLoader(data, 10))
    assert model.ledger.total == 0


class InTrainingOnly(nn.Module):
    """Gives its losses in training mode and scores in evaluation mode, as detection models do."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x, y):
        scores = self.head(x)
        return {"classifier": F.cross_entropy(scores, y)} if self.training else scores


def test_losses_that_a_network_gives_in_training_mode_only_are_trained(make_model, make_data, capsys):
    x, y = make_data(n=20).tensors
    data = DataLoader(TensorDataset(x, y, y), 10)
    model = make_model(InTrainingOnly(), loss_fn=lambda losses, targets: losses["classifier"])
    model.fit(data)
    assert model.ledger.total == 2
    said = capsys.readouterr().out
    assert "evaluate() cannot compute the loss: in evaluation mode, loss_fn(outputs, targets) fails" in said
    model = make_model(InTrainingOnly(), loss_fn=lambda losses, targets: losses["classifier"], metrics="loss")
    with pytest.raises(DataError, match=r"in evaluation mode, loss_fn\(outputs, targets\) fails"):
        model.fit(data)
    assert model.ledger.total == 0


class Tokens(Dataset):
    def __init__(self, **inputs):
        self.inputs = inputs

    def __len__(self):
        return 12

    def __getitem__(self, row):
        inputs = {name: values[row] for name, values in self.inputs.items()}
        return inputs, inputs.get("labels", inputs["input_ids"])


@pytest.mark.sample(2)
@pytest.mark.parametrize("labels", [True, False])
def test_a_language_model_with_cache_and_model_outputs_trains_unchanged(make_model, labels):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1
    )
    tokens = torch.randint(0, 11, (12, 6))

    def next_token(outputs, targets):
        return F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

    data = Tokens(input_ids=tokens, **({"labels": tokens} if labels else {}))
    loss_fn = (lambda outputs, targets: outputs.loss) if labels else next_token
    model = make_model(
        transformers.GPT2LMHeadModel(config), loss_fn=loss_fn, metrics="loss" if labels else ["accuracy", "loss"]
    )
    model.fit(DataLoader(data, 6))
    with torch.no_grad():
        logits = model.network.eval()(tokens).logits
    found = model.eval(data, batch_size=5)
    expected = float(F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    if not labels:
        right = logits[:, :-1].argmax(-1) == tokens[:, 1:]
        assert found["accuracy"] == pytest.approx(float(right.float().mean()))


class Several:
    """A metric with a given value."""

    def __init__(self, value):
        self.value = value

    def update(self, outputs, targets):
        pass

    def compute(self):
        return self.value

    def reset(self):
        pass


@pytest.mark.parametrize("with_validation", [True, False])
@pytest.mark.parametrize("value", [{"a": 1.0, "b": 2.0}, torch.eye(2), [1.0, 2.0], np.zeros(3), None, "high"])
@pytest.mark.sample(3)
def test_a_metric_that_is_not_one_number_is_refused_before_any_budget_is_spent(
    make_model, make_data, value, with_validation
):
    model = make_model(metrics={"mine": Several(value)})
    with pytest.raises(DataError, match="the metric 'mine' returns"):
        model.fit(DataLoader(make_data(), 16), valid_loader=make_data(n=9) if with_validation else None)
    assert model.ledger.total == 0


def test_a_metric_that_fails_on_all_validation_data_is_refused_before_any_budget_is_spent(make_model, make_data):
    class Failing(Several):
        def compute(self):
            raise RuntimeError("never enough")

    model = make_model(metrics={"mine": Failing(0)})
    with pytest.raises(DataError, match="never enough"):
        model.fit(DataLoader(make_data(), 16), valid_loader=make_data(n=9))
    assert model.ledger.total == 0
    model.fit(DataLoader(make_data(), 16))  # a few training examples may be too few for it


def test_the_trial_on_training_examples_says_that_it_read_them_and_leaves_no_trace(make_model, make_data):
    with pytest.raises(DataError, match="read private examples"):
        make_model(metrics="mae").fit(DataLoader(make_data(), 16))
    data = make_data(n=50)
    model = make_model(metrics=["accuracy", "loss"])
    model.fit(DataLoader(data, 10))
    again = make_model(model.network, metrics=["accuracy", "loss"], ledger=model.ledger)
    assert model.eval(data) == again.eval(data)


def test_arrays_are_validated_evaluated_and_predicted(make_model, make_data):
    x, y = make_data().tensors
    model = make_model(metrics=["accuracy", "loss"])
    history = model.fit(DataLoader(TensorDataset(x, y), 16), valid_loader=(2 * x.double().numpy(), y.numpy()))
    assert history.column("accuracy")[-1] == model.eval((2 * x, y))["accuracy"]
    assert model.eval((x.numpy(), y.numpy())) == pytest.approx(model.eval((x, y)))
    torch.testing.assert_close(model.predict(x.numpy()), model.predict(x))
    torch.testing.assert_close(model.predict(DataLoader(TensorDataset(x, y), 16)), model.predict((x, y)))


def test_arrays_in_the_memory_of_the_training_data_are_refused_as_validation_data(make_model):
    x, y = np.random.randn(64, 4).astype("float32"), np.zeros(64, dtype="int64")
    data = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    with pytest.raises(UnsupportedLoaderError, match="valid_loader holds the training data"):
        make_model().fit(DataLoader(data, 16), valid_loader=(x[10:20], y[10:20]))
