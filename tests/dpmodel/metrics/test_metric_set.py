import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.metrics import METRICS, Accuracy, MetricSet, MetricSpec
from dpmodel.metrics.names import REGRESSION
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


def test_outputs_may_be_a_dict_if_the_loss_takes_one():
    scores, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    loss_fn = torch.nn.CrossEntropyLoss()
    metrics = MetricSet("loss", loss_fn=lambda outputs, y: loss_fn(outputs["logits"], y))
    metrics.update({"logits": scores}, targets)
    assert metrics.compute() == {"loss": pytest.approx(float(loss_fn(scores, targets)))}
    with pytest.raises(DataError, match="'accuracy' takes the outputs as one tensor, but the network returns a dict"):
        MetricSet("accuracy").update({"logits": scores, "features": torch.zeros(5, 8)}, targets)


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


class Seen:
    """A custom metric without state before reset."""

    def __init__(self, gives=1.0):
        self.gives = gives

    def reset(self):
        self.batches = []

    def update(self, outputs, targets):
        self.batches.append((outputs, targets))

    def compute(self):
        return self.gives


@pytest.fixture
def registered():
    names = []

    def register(name, builder):
        METRICS.register(name)(builder)
        names.append(name)

    yield register
    for name in names:
        del METRICS._builders[name]


@pytest.mark.parametrize("shape", [(6, 2), (6, 3), (6,), (6, 1), (6, 3, 4)])
@pytest.mark.parametrize("by_name", [True, False])
def test_a_custom_metric_gets_the_outputs_of_the_network_by_name_and_as_an_object(registered, shape, by_name):
    own = Seen()
    registered("Seen1", lambda: own)
    outputs, targets = torch.randn(shape), torch.zeros(6, dtype=torch.int64)
    metrics = MetricSet(["accuracy", "seen1"] if by_name and len(shape) == 2 else "seen1" if by_name else own)
    metrics.update(outputs, targets)
    ((given_outputs, given_targets),) = own.batches
    assert given_outputs.dtype == torch.float32
    assert torch.equal(given_outputs, outputs)
    assert torch.equal(given_targets, targets)


def test_a_registered_metric_without_classes_takes_a_dict_and_targets_of_any_kind(registered):
    own = Seen()
    registered("seen", lambda: own)
    outputs, targets = {"logits": torch.randn(3, 2)}, torch.randn(3, 2)
    metrics = MetricSet("seen")
    metrics.update(outputs, targets)
    assert own.batches == [(outputs, targets)]
    assert metrics.compute() == {"seen": 1.0}


def test_a_builder_gets_the_arguments_it_names_and_the_users_options(registered):
    asked = {}

    def build(num_classes, are_probabilities, power=1):
        asked.update(num_classes=num_classes, are_probabilities=are_probabilities, power=power)
        return lambda outputs, targets: 0.25

    registered("asking", build)
    metrics = MetricSet(MetricSpec("asking", {"power": 2}), loss_fn=torch.nn.BCELoss())
    metrics.update(torch.rand(4), torch.tensor([0, 1, 1, 0]))
    assert asked == {"num_classes": 2, "are_probabilities": True, "power": 2}
    assert metrics.compute() == {"asking": 0.25}


@pytest.mark.parametrize(
    ("builder", "options", "message"),
    [
        (lambda power: Seen(), {"powr": 2}, "no argument 'powr'; did you mean 'power'"),
        (
            lambda outputs, targets: 0.0,
            {},
            r"'mine' \(its builder, called before there are outputs\) needs",
        ),
        (lambda: 3, {}, "the builder of metric 'mine' returned 3; it must return an object"),
    ],
)
def test_a_builder_that_does_not_return_a_metric_is_refused_with_the_reason(registered, builder, options, message):
    registered("mine", builder)
    with pytest.raises(ValueError, match=message):
        MetricSet(MetricSpec("mine", options)).update(torch.zeros(2, 2), torch.tensor([0, 1]))


def test_an_object_is_reset_before_its_first_batch_and_not_between_batches():
    own = Seen()
    metrics = MetricSet(own)
    for _ in range(2):
        metrics.update(torch.eye(2), torch.tensor([0, 1]))
    assert len(own.batches) == 2


def top2(outputs, targets):
    return (outputs.topk(2).indices == targets[:, None]).any(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 9), min_size=1, max_size=4), st.booleans())
def test_a_function_is_averaged_over_the_examples_of_all_batches(seed, sizes, per_example):
    parts = batches(seed, 4, [*sizes, 3])
    function = top2 if per_example else lambda outputs, targets: float(top2(outputs, targets).float().mean())
    metrics = MetricSet({"top2": function})
    for outputs, targets in parts:
        metrics.update(outputs, targets)
    outputs, targets = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
    expected = float(top2(outputs, targets).double().mean())
    assert metrics.compute() == {"top2": pytest.approx(expected, abs=1e-6)}


def test_a_function_is_named_after_itself_or_by_the_dict():
    assert MetricSet([top2, "accuracy"]).names == ("top2", "accuracy")
    assert MetricSet({"best two": top2}).names == ("best two",)
    assert MetricSet(torch.nn.L1Loss()).names == ("L1Loss",)
    with pytest.raises(ValueError, match="has no name; pass a dict"):
        MetricSet(lambda outputs, targets: 0.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "'mine' returned None; a metric function must return a number or one row per example"),
        (torch.zeros(5), r"'mine' returned a tensor of shape \(5,\) for 3 examples"),
    ],
)
def test_a_function_that_returns_neither_a_number_nor_a_row_per_example_is_refused(value, message):
    def mine(outputs, targets):
        return value

    with pytest.raises(DataError, match=message):
        MetricSet(mine).update(torch.zeros(3, 2), torch.tensor([0, 1, 1]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("acuracy", "unknown metric 'acuracy'; did you mean 'accuracy'"),
        (["accuracy", "accuracy"], "two metrics have the name 'accuracy'"),
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
    with pytest.raises(DataError, match="there are no examples"):
        metrics.compute()


def test_a_metric_with_many_numbers_is_refused():
    from torchmetrics.classification import MulticlassAccuracy

    metrics = MetricSet({"each": MulticlassAccuracy(num_classes=3, average=None)})
    metrics.update(torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match="'each' returns 3 numbers"):
        metrics.compute()


def test_torchmetrics_and_torch_are_not_imported_before_a_batch_comes():
    code = (
        "import sys, dpmodel.metrics as m; m.MetricSet('accuracy');"
        "print('torchmetrics' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
