import torch
from torch import nn

from dpmodel.features.digest import DataDigest, network_digest


def digest_of(*batches):
    digest = DataDigest()
    for batch in batches:
        digest.update(batch)
    return digest.hexdigest()


def test_batches_of_any_size_have_the_digest_of_the_whole():
    x = torch.rand(10, 3)
    assert digest_of(x) == digest_of(x[:1], x[1:7], x[7:]) == digest_of(x.t().contiguous().t())
    assert digest_of({"a": x, "b": x + 1}) == digest_of({"a": x[:4], "b": x[:4] + 1}, {"a": x[4:], "b": x[4:] + 1})


def test_values_order_type_and_shape_change_the_digest():
    x = torch.arange(12.0).reshape(6, 2)
    others = [x + 1, x.flip(0), x.double(), x.reshape(6, 1, 2), x.reshape(3, 4), x[:5], (x[:, :1], x[:, 1:])]
    assert len({digest_of(each) for each in [x, *others]}) == 1 + len(others)


def test_weights_buffers_settings_and_classes_change_the_digest():
    class Other(nn.Linear):
        pass

    torch.manual_seed(0)
    layer = nn.Linear(2, 2)
    same, changed, other = nn.Linear(2, 2), nn.Linear(2, 2), Other(2, 2)
    same.load_state_dict(layer.state_dict())
    other.load_state_dict(layer.state_dict())
    assert network_digest(layer) == network_digest(same)
    hidden = nn.Linear(2, 2)
    hidden.load_state_dict(layer.state_dict())
    hidden.register_buffer("unsaved", torch.ones(1), persistent=False)
    pools = nn.AvgPool2d(2), nn.AvgPool2d(3)
    assert len({network_digest(each) for each in (layer, changed, other, hidden, *pools)}) == 6
