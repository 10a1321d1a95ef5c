"""Targets that a classification loss cannot take are refused with a remedy; losses of the user's own are not judged."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel.data.targets import require_class_targets
from monitors.errors import DataError

VOCABULARY, LENGTH = 50, 16


class Moved(nn.CrossEntropyLoss):
    def forward(self, outputs, targets):
        return super().forward(outputs.movedim(-1, 1), targets)


class Renamed(nn.CrossEntropyLoss):
    """Has the forward pass of its base."""


def texts():
    return TensorDataset(torch.zeros(4, LENGTH), torch.arange(4 * LENGTH).view(4, LENGTH) % VOCABULARY)


@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), Renamed()])
def test_classes_in_the_last_dimension_are_refused_with_where_to_move_them(loss_fn):
    with pytest.raises(DataError, match=r"expects the classes in dimension 1.*\(2, 16, 50\).*movedim\(-1, 1\)"):
        require_class_targets(texts(), torch.zeros(2, LENGTH, VOCABULARY), loss_fn)


def test_classes_in_dimension_1_are_accepted_at_each_position():
    require_class_targets(texts(), torch.zeros(2, VOCABULARY, LENGTH), nn.CrossEntropyLoss())


def test_a_loss_with_a_forward_pass_of_its_own_may_rearrange_its_outputs():
    require_class_targets(texts(), torch.zeros(2, LENGTH, VOCABULARY), Moved())


def test_a_class_out_of_range_is_named():
    data = TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 2]))
    with pytest.raises(DataError, match="target 2 at row 2 is out of range: the network gives 2 classes"):
        require_class_targets(data, torch.zeros(2, 2), nn.CrossEntropyLoss())
