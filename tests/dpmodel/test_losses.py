import pytest
import torch

from dpmodel.losses import LOSSES, SoftmaxCrossEntropyWithLogits, build_loss
from monitors.errors import DataError


@pytest.mark.parametrize("name", [*LOSSES.names(), "HuberLoss", "CrossEntropyLoss"])
def test_every_loss_is_built_by_name(name):
    assert isinstance(build_loss(name), torch.nn.Module)


def test_mindspores_loss_is_cross_entropy_for_class_indices_and_for_rows():
    outputs, targets = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    expected = torch.nn.functional.cross_entropy(outputs, targets)
    rows = torch.nn.functional.one_hot(targets, 4).float()
    assert torch.allclose(SoftmaxCrossEntropyWithLogits(sparse=True)(outputs, targets), expected)
    assert torch.allclose(SoftmaxCrossEntropyWithLogits(sparse=False)(outputs, rows), expected)


@pytest.mark.parametrize("sparse", [True, False])
def test_targets_of_the_other_kind_are_refused_with_the_remedy(sparse):
    targets = torch.zeros(5, 4) if sparse else torch.zeros(5, dtype=torch.long)
    with pytest.raises(DataError, match=f"set sparse={not sparse}"):
        SoftmaxCrossEntropyWithLogits(sparse=sparse)(torch.zeros(5, 4), targets)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cross_entopy", {}, "did you mean 'cross_entropy'"),
        ("HuberLos", {}, "did you mean 'HuberLoss'"),
        ("cross_entropy", {"label_smothing": 0.1}, "did you mean 'label_smoothing'"),
    ],
)
def test_wrong_names_and_arguments_are_refused_with_the_nearest(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_loss(name, **arguments)
