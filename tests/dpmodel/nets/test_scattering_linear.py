import pytest
import torch

from dpmodel.nets import ScatteringLinear


@pytest.mark.parametrize(("channels", "groups"), [(81, 27), (243, 27), (25, 1), (9, 9)])
def test_groups_follow_from_the_channels(channels, groups):
    assert ScatteringLinear(channels, channels * 4).norm.num_groups == groups


def test_each_example_is_normalised_by_itself():
    network = ScatteringLinear(81, 81 * 4, num_classes=3)
    x = torch.rand(5, 81, 2, 2)
    assert torch.allclose(network(x)[2:3], network(x[2:3]), atol=1e-5)
    assert torch.allclose(network(x), network(7 * x + 3), atol=1e-2)
    assert [tuple(parameter.shape) for parameter in network.parameters()] == [(3, 324), (3,)]


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="num_groups must divide the 81 channels of the features, got 10"):
        ScatteringLinear(81, 324, num_groups=10)
