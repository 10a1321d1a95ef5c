import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.metric_names import REGRESSION
from dpmodel.metrics import METRICS, Accuracy, MetricSet, MetricSpec
from monitors.errors import DataError


def batches(seed, classes, sizes):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, classes, generator=generator), torch.randint(classes, (size,), generator=generator))
        for size in sizes
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 7), st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_accuracy_and_loss_are_those_of_all_examples_together(seed, classes, sizes):
    parts = batches(seed, classes, [*sizes, 3])
    loss_fn = torch.nn.CrossEntropyLoss()
    metrics = MetricSet(["accuracy", "loss"], loss_fn=loss_fn)
    for outputs, targets in parts:
        metrics.update(outputs, targets)
    outputs, targets = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
    result = metrics.compute()
    assert result["accuracy"] == pytest.approx(float((outputs.argmax(1) == targets).float().mean()), abs=1e-6)
    assert result["loss"] == pytest.approx(float(loss_fn(outputs, targets)), abs=1e-5)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("columns", [1, 2])
def test_binary_scores_of_any_size_are_read_as_log_odds(scale, columns):
    odds = scale * torch.tensor([0.3, 0.2, -0.3, 0.1])
    outputs = odds[:, None] if columns == 1 else torch.stack([-odds / 2, odds / 2], 1)
    metrics = MetricSet(["accuracy", "auroc"])
    metrics.update(outputs, torch.tensor([1, 0, 0, 0]))
    assert metrics.compute() == {"accuracy": 0.5, "auroc": 1.0}


def test_outputs_of_a_network_trained_with_bce_loss_are_probabilities():
    metrics = MetricSet("accuracy", loss_fn=torch.nn.BCELoss())
    metrics.update(torch.tensor([0.9, 0.2]), torch.tensor([1, 0]))
    assert metrics.compute() == {"accuracy": 1.0}


@pytest.mark.parametrize("name", sorted(set(METRICS.names()) - REGRESSION))
@pytest.mark.parametrize("classes", [2, 4])
def test_every_name_gives_one_for_perfect_predictions_and_one_number(name, classes):
    targets = torch.arange(12) % classes
    metrics = MetricSet(name)
    metrics.update(10 * torch.nn.functional.one_hot(targets, classes).float(), targets)
    assert metrics.compute() == {name: pytest.approx(1.0)}


def test_errors_of_a_regression_are_those_of_all_examples_together():
    outputs, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [0.0], [1.0]])
    metrics = MetricSet(["mae", "mse", "loss"], loss_fn=torch.nn.MSELoss())
    for rows in (slice(0, 1), slice(1, 3)):
        metrics.update(outputs[rows], targets[rows])
    assert metrics.compute() == pytest.approx({"mae": 5 / 3, "mse": 13 / 3, "loss": 13 / 3})


def test_outputs_may_be_a_dict_where_the_loss_takes_one():
    scores, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    loss_fn = torch.nn.CrossEntropyLoss()
    metrics = MetricSet("loss", loss_fn=lambda outputs, y: loss_fn(outputs["logits"], y))
    metrics.update({"logits": scores}, targets)
    assert metrics.compute() == {"loss": pytest.approx(float(loss_fn(scores, targets)))}
    with pytest.raises(DataError, match="'accuracy' takes the outputs as one tensor, but the network gives a dict"):
        MetricSet("accuracy").update({"logits": scores}, targets)


def test_names_are_known_in_any_case_and_kept_as_given():
    assert MetricSet(["Accuracy", "F1"]).names == ("Accuracy", "F1")


def test_a_dict_names_objects_names_and_specs_as_in_mindspore():
    from torchmetrics.classification import MulticlassF1Score

    metrics = MetricSet({"Accuracy": Accuracy(), "macro": MulticlassF1Score(num_classes=3), "top": "accuracy"})
    metrics.update(torch.eye(3), torch.arange(3))
    assert metrics.compute() == {"Accuracy": 1.0, "macro": 1.0, "top": 1.0}


def test_an_object_and_a_collection_are_taken_as_they_are():
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy

    single, collection = MulticlassAccuracy(num_classes=3), MetricCollection([MulticlassAccuracy(num_classes=3)])
    assert MetricSet(single).names == MetricSet(collection).names == ("MulticlassAccuracy",)


def test_reset_forgets_everything_seen():
    metrics = MetricSet("accuracy")
    metrics.update(torch.eye(2), torch.tensor([1, 0]))
    metrics.reset()
    metrics.update(torch.eye(2), torch.tensor([0, 1]))
    assert metrics.compute() == {"accuracy": 1.0}


def test_options_reach_the_metric():
    metrics = MetricSet(MetricSpec("accuracy", {"average": "macro"}))
    metrics.update(torch.eye(3)[[0, 0, 0, 0]], torch.tensor([0, 0, 0, 1]))
    assert metrics.compute() == {"accuracy": pytest.approx(0.5)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("acuracy", "unknown metric 'acuracy'; did you mean 'accuracy'"),
        (["accuracy", "accuracy"], "two metrics are called 'accuracy'"),
        ("loss", "needs the loss function"),
        (3, "must be a name or an object"),
        ([Accuracy], r"got the class Accuracy; write Accuracy\(\.\.\.\)"),
    ],
)
def test_wrong_metrics_are_refused_with_the_remedy(given, message):
    with pytest.raises(ValueError, match=message):
        MetricSet(given)


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"must lie in \[0, 3\).*got 0 to 3"),
        (torch.zeros(2, 3), torch.tensor([0]), "differ in length: 2 and 1"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "MultilabelAccuracy"),
    ],
)
def test_wrong_batches_are_refused(outputs, targets, message):
    with pytest.raises(DataError, match=message):
        MetricSet("accuracy").update(outputs, targets)


def test_an_empty_loader_has_no_metrics():
    metrics = MetricSet("accuracy")
    metrics.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(DataError, match="seen no example"):
        metrics.compute()


def test_a_metric_with_many_numbers_is_refused():
    from torchmetrics.classification import MulticlassAccuracy

    metrics = MetricSet({"each": MulticlassAccuracy(num_classes=3, average=None)})
    metrics.update(torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match="'each' gives 3 numbers"):
        metrics.compute()


def test_torchmetrics_and_torch_are_not_imported_before_a_batch_comes():
    code = (
        "import sys, dpmodel.metrics as m; m.MetricSet('accuracy');"
        "print('torchmetrics' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
