import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import Callback, fix, validate
from dpmodel.nets import FrozenBatchNorm
from dpmodel.preflight.network import require_valid
from monitors.errors import UnprotectedUpdateError, UnsupportedModuleError


class Writing(nn.Module):
    """Moves its weights by the data while it runs."""

    def __init__(self, when=lambda x: True):
        super().__init__()
        self.linear, self.when = nn.Linear(3, 2), when

    def forward(self, x):
        if self.when(x):
            with torch.no_grad():
                self.linear.weight.add_(1.0)
        return self.linear(x)


MIXING = [
    nn.BatchNorm1d(6),
    nn.BatchNorm2d(6),
    nn.BatchNorm3d(6),
    nn.SyncBatchNorm(6),
    nn.InstanceNorm2d(6, track_running_stats=True),
]


@pytest.mark.parametrize("layer", MIXING, ids=lambda layer: type(layer).__name__)
def test_layers_that_mix_examples_or_keep_statistics_are_named_with_a_replacement_that_is_valid(layer):
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Sequential(layer))
    (problem,) = validate(network)
    assert "'1.0'" in problem
    assert type(layer).__name__ in problem
    assert validate(fix(network)) == []
    assert len(validate(network)) == 1, "the original is left as it was"


def test_the_replacement_of_batch_norm_takes_the_same_inputs():
    network = nn.Sequential(nn.Conv2d(1, 48, 3), nn.BatchNorm2d(48), nn.ReLU())
    fixed = fix(network)
    x = torch.randn(2, 1, 8, 8)
    assert fixed(x).shape == network(x).shape
    assert fixed[1].num_groups == 16
    assert validate(fixed, x) == []


def test_a_single_layer_network_is_fixed_too():
    assert isinstance(fix(nn.BatchNorm1d(4)), nn.GroupNorm)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(144, 3)
        ),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 2)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.RReLU(), nn.Linear(8, 2)),
    ],
)
def test_networks_that_treat_examples_independently_are_valid(network):
    network.eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    assert validate(network, torch.randn(3, 1, 8, 8)) == []
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_the_probe_leaves_the_public_random_state_alone():
    network = nn.Linear(3, 2)
    x = torch.randn(2, 3)
    before = torch.get_rng_state()
    validate(network, x)
    assert torch.equal(before, torch.get_rng_state())


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return (x - x.mean(dim=0)) * self.scale


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("mean_seen", torch.zeros(3))

    def forward(self, x):
        self.mean_seen.lerp_(x.mean(dim=0), 0.1)
        return self.linear(x)


class Remembering(nn.Module):
    """Keeps a running mean outside of buffers and parameters."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.mean_seen = 0.0

    def forward(self, x):
        self.mean_seen = 0.5 * self.mean_seen + x.detach().mean(dim=0)
        return self.linear(x - self.mean_seen)


class Folding(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x).sum(dim=0, keepdim=True)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Mixing(), "depends on the other examples"),
        (Counting(), "buffer 'mean_seen' changes in the forward pass"),
        (Remembering(), "depends on the other examples"),
        (Folding(), "must be the number of examples"),
        (Writing(), "parameter 'linear.weight' is written to in the forward pass"),
    ],
)
def test_unknown_layers_are_found_by_running_them(network, words):
    assert validate(network) == []
    (problem,) = validate(network, torch.randn(4, 3))
    assert words in problem


class Dropping(nn.Module):
    """Dropout by function, which no module shows."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 32), nn.Linear(32, 2)

    def forward(self, x):
        h = torch.dropout(torch.relu(self.one(x)), 0.5, self.training)
        return self.two(torch.dropout(h, 0.5, self.training))


class Shuffling(nn.Module):
    """Mixes examples at random, in training mode only."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(0.5 * (x + x[torch.randperm(len(x))]) if self.training else x)


@pytest.mark.parametrize("examples", [2, 4])
def test_random_draws_for_each_example_are_distinguished_from_mixing(examples):
    x = torch.randn(examples, 3)
    assert validate(Dropping(), x) == []
    assert ["depends on the other examples" in problem for problem in validate(Shuffling(), x)] == [True]


def test_the_probe_restores_buffers():
    network = Counting()
    validate(network, torch.randn(4, 3))
    assert torch.equal(network.mean_seen, torch.zeros(3))


def test_frozen_and_uninitialised_networks_are_named():
    assert "no parameter requires a gradient" in validate(nn.Linear(2, 2).requires_grad_(False))[0]
    for lazy in (nn.LazyLinear(3), nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d()), nn.LazyInstanceNorm1d()):
        (problem,) = validate(lazy, torch.randn(4, 2))
        assert "not initialised yet" in problem
        assert "Call the network once" in problem
        with pytest.raises(UnsupportedModuleError, match="not initialised yet"):
            fix(lazy)


def test_fit_refuses_lazy_layers_and_trains_them_once_they_have_seen_a_batch(make_model, loader):
    network = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(3))
    model = make_model(network)
    with pytest.raises(UnsupportedModuleError, match="not initialised yet"):
        model.fit(loader)
    network(torch.zeros(1, 4))
    model.fit(loader)
    assert model.ledger.total == 4


def test_every_problem_is_listed_in_the_error():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    with pytest.raises(UnsupportedModuleError) as caught:
        require_valid(network)
    assert str(caught.value).count("mixes the examples") == 2


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
@pytest.mark.parametrize("table", [nn.Embedding, nn.EmbeddingBag])
def test_tables_that_rescale_by_what_the_batch_looked_up_are_named_and_fixed(table, options):
    network = nn.Sequential(table(5, 3, **options))
    (problem,) = validate(network)
    assert f"({table.__name__})" in problem
    fixed = fix(network)
    assert validate(fixed) == []
    assert torch.equal(fixed[0].weight, network[0].weight)


def test_the_probe_restores_parameters():
    network = Writing()
    before = network.linear.weight.detach().clone()
    validate(network, torch.randn(4, 3))
    assert torch.equal(network.linear.weight, before)


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap", "loop"])
def test_a_layer_that_writes_to_its_weights_only_later_stops_the_training_before_an_update(make_model, engine):
    late = threading.Event()
    network = Writing(when=lambda x: late.is_set())
    data = torch.utils.data.TensorDataset(torch.randn(64, 3), torch.randint(0, 2, (64,)))
    model = make_model(network, engine=engine)

    class Later(Callback):
        def on_train_epoch_end(self, run):
            late.set()

    with pytest.raises(UnprotectedUpdateError, match=r"the forward pass changed 'linear\.weight'"):
        model.fit(torch.utils.data.DataLoader(data, 16), epochs=20, callbacks=[Later()])
    assert model.ledger.total > 0


@pytest.mark.parametrize("features", [2, 16, 64])
def test_the_replacement_for_vectors_gives_more_than_signs_and_takes_one_example(features):
    mended = fix(nn.Sequential(nn.Linear(3, features), nn.BatchNorm1d(features)))
    outputs = mended(torch.randn(1, 3))
    assert outputs.shape == (1, features)
    assert len(outputs.unique()) == features
    assert f"GroupNorm(1, {features})" in validate(nn.BatchNorm1d(features))[0]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_mixing_behind_zero_weights_is_found(dropout):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.gate = nn.Linear(3, 2), nn.Parameter(torch.zeros(2))

        def forward(self, x):
            h = torch.dropout(self.layer(x), dropout, self.training)
            return h + self.gate * (h - h.mean(0)) if self.training else h

    network = Gated()
    assert ["depends on the other examples" in problem for problem in validate(network, torch.randn(3, 3))] == [True]
    assert not network.gate.any()


@pytest.mark.parametrize("features", [3, 40])
def test_noise_in_evaluation_mode_is_not_mixing(features):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, features), nn.Linear(features, 2)

        def forward(self, x):
            h = self.one(x)
            return self.two(h + torch.randn_like(h))

    assert validate(Noisy(), torch.randn(4, 3)) == []


def backbone():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))


def test_a_frozen_backbone_keeps_its_features_and_only_its_head_trains(make_model):
    pretrained = backbone()
    for _ in range(20):
        pretrained(1.0 + 2.0 * torch.randn(16, 1, 6, 6))
    pretrained.requires_grad_(False)
    assert "FrozenBatchNorm(4), which keeps its statistics" in validate(pretrained)[0]
    network = fix(pretrained)
    x = torch.randn(32, 1, 6, 6)
    torch.testing.assert_close(network(x), pretrained.eval()(x))
    assert validate(network) == ["no parameter requires a gradient; unfreeze some with requires_grad_(True)"]
    network[4] = nn.Linear(4 * 16, 3)
    before = network[1].scale.clone()
    make_model(network).fit(DataLoader(TensorDataset(x, torch.arange(32) % 3), batch_size=8), epochs=1)
    assert torch.equal(network[1].scale, before)


def test_batch_normalisation_that_trains_or_has_no_statistics_becomes_group_norm():
    trained, bare = nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False).requires_grad_(False)
    assert isinstance(fix(nn.Sequential(trained))[0], nn.GroupNorm)
    assert isinstance(fix(nn.Sequential(bare))[0], nn.GroupNorm)
    assert isinstance(fix(nn.Sequential(nn.BatchNorm2d(4, affine=False)))[0], nn.GroupNorm)
    with pytest.raises(ValueError, match="has no running statistics"):
        FrozenBatchNorm.of(bare)


@given(st.integers(2, 96))
def test_the_replacement_takes_one_example_whose_images_have_shrunk_to_one_position(channels):
    layer = fix(nn.BatchNorm2d(channels)).train()
    x = torch.randn(1, channels, 1, 1)
    assert float(layer(x).std()) > 0
