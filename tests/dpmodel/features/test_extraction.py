import copy
import stat
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory
from dpmodel.data import InMemoryDataset, load_dataset
from dpmodel.features import Scattering2D, extract, extract_splits, extraction
from dpmodel.features.example_features import ExampleFeatures
from monitors.errors import DataError, UnprotectedUpdateError, UnsupportedLoaderError, UnsupportedModuleError

X, Y = torch.rand(40, 6, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3


class Scaled(nn.Module):
    """A network with a setting that neither its weights nor its description show."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.scale = scale

    def forward(self, x):
        return self.layer(x) * self.scale


@pytest.fixture
def network():
    return Scaled()


def data():
    return TensorDataset(X, Y)


class Own(Dataset):
    def __init__(self, change=lambda row, x: x):
        self.change = change

    def __len__(self):
        return len(X)

    def __getitem__(self, row):
        return self.change(row, X[row]), int(Y[row])


@pytest.mark.parametrize("dataset", [data(), InMemoryDataset(X, Y), Own()], ids=["tensors", "in memory", "own"])
@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_features_are_the_networks_outputs_with_the_same_targets(network, dataset, batch_size):
    features = extract(network, dataset, batch_size=batch_size)
    assert torch.allclose(features.x, network(X).detach(), atol=1e-6)
    assert features.x.dtype == torch.float32
    assert not features.x.requires_grad
    assert torch.equal(features.y, Y)


def test_images_are_converted_before_the_transform():
    images = torch.randint(0, 256, (5, 1, 12, 12), dtype=torch.uint8)
    read = InMemoryDataset(images, torch.arange(5), mean=0.5, std=0.25)
    transform = Scattering2D(1, (12, 12), 3)
    wanted = transform((images / 255.0 - 0.5) / 0.25)
    assert torch.allclose(extract(transform, read).x, wanted, atol=1e-5)


def test_numbers_to_predict_and_other_types_of_features():
    numbers = TensorDataset(X, torch.rand(40, 2, dtype=torch.float64))
    features = extract(nn.Linear(6, 4).bfloat16(), TensorDataset(X.bfloat16(), numbers.tensors[1]))
    assert (features.x.dtype, features.y.dtype, tuple(features.y.shape)) == (torch.float32, torch.float32, (40, 2))


def test_the_network_runs_in_evaluation_mode_and_is_left_as_it_was():
    network = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4), nn.Dropout(0.5)).train()
    network[1].eval()
    before = copy.deepcopy(network.state_dict())
    features = extract(network, data())
    assert [module.training for module in network] == [True, False, True]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.allclose(features.x, network.eval()(X).detach(), atol=1e-6)


def test_a_cache_saves_the_passes_and_is_private(network, tmp_path, monkeypatch):
    first = extract(network, data(), cache=tmp_path / "cache")
    monkeypatch.delattr(extraction, "_computed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = extract(network, Own(), cache=tmp_path / "cache", batch_size=7)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    folder = tmp_path / "cache" / "features"
    (file,) = folder.iterdir()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, file)] == [0o700, 0o600]


def test_other_data_weights_or_classes_have_other_files(network, tmp_path):
    extract(network, data(), cache=tmp_path)
    extract(network, TensorDataset(X + 1, Y), cache=tmp_path)
    with torch.no_grad():
        network.layer.bias += 1
    changed = extract(network, data(), cache=tmp_path)
    assert torch.allclose(changed.x, network(X).detach(), atol=1e-6)
    assert len(list((tmp_path / "features").iterdir())) == 3
    extract(Scattering2D(1, (8, 8), 2), TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4)), cache=tmp_path)
    assert len(list((tmp_path / "features").iterdir())) == 4


def test_targets_come_from_the_data_not_from_the_cache(network, tmp_path):
    extract(network, data(), cache=tmp_path)
    again = extract(network, TensorDataset(X, Y.flip(0)), cache=tmp_path)
    assert torch.equal(again.y, Y.flip(0))
    assert len(list((tmp_path / "features").iterdir())) == 1


def test_a_change_that_no_digest_shows_is_found(network, tmp_path):
    extract(network, data(), cache=tmp_path)
    network.scale = 2.0
    with pytest.warns(UserWarning, match="cached features are not those that this network gives. They are computed"):
        changed = extract(network, data(), cache=tmp_path)
    assert torch.allclose(changed.x, network(X).detach(), atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract(network, data(), cache=tmp_path)


@pytest.mark.parametrize("with_buffer", [False, True])
def test_a_network_whose_rows_depend_on_each_other_is_refused(with_buffer):
    class Mixing(nn.Module):
        def forward(self, x):
            return x - x.mean(0) if with_buffer else torch.softmax(x, 0)

    with pytest.raises(UnsupportedModuleError, match="Mixing gives an example different features alone and beside"):
        extract(Mixing(), data())


def test_batch_normalisation_without_running_statistics_is_refused():
    layer = nn.BatchNorm2d(2, track_running_stats=False)
    images = TensorDataset(torch.rand(9, 2, 3, 3), torch.arange(9))
    with pytest.raises(UnsupportedModuleError, match="batch normalisation needs running statistics"):
        extract(layer, images)
    with pytest.raises(DataError, match=r"of shape \(1, 6\), one example: Expected more than 1 value"):
        extract(nn.BatchNorm1d(6, track_running_stats=False), data())


def test_random_features_are_refused():
    class Noisy(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5)

    with pytest.raises(UnsupportedModuleError, match="draws random numbers"):
        extract(Noisy(), data())


class Slightly(nn.Module):
    """Adds a little of the mean over the batch: less than rounding may explain."""

    def forward(self, x):
        return x + 1e-5 * x.mean(0)


class SlightlyByValue(Slightly):
    """Reads a value, so that it cannot be vectorised."""

    def forward(self, x):
        return super().forward(x) if float(x.sum()) else x


class Remembering(nn.Module):
    """Adds a little of what it has seen before."""

    def __init__(self):
        super().__init__()
        self.seen = 0.0

    def forward(self, x):
        out = x + self.seen
        self.seen = self.seen + 1e-7 * float(x.sum())
        return out


class Counting(nn.Module):
    """Likewise, in a tensor."""

    def __init__(self, kind=lambda value: nn.Parameter(value, requires_grad=False)):
        super().__init__()
        self.seen = kind(torch.zeros(()))

    def forward(self, x):
        out = x + self.seen
        self.seen += 1e-7 * x.sum().detach()
        return out


class Last(nn.Module):
    """Subtracts a little of the example before, which shows if that is large."""

    def __init__(self):
        super().__init__()
        self.last = nn.Parameter(torch.zeros(6), requires_grad=False)

    def forward(self, x):
        out = x - 1e-6 * self.last
        self.last.copy_(x.mean(0))
        return out


class Factored(nn.Module):
    """Takes another branch for an example with which a function of torch fails."""

    def forward(self, x):
        try:
            torch.linalg.cholesky(torch.eye(6) * (60 - x.sum()))
        except RuntimeError:
            return 2 * x
        return x


@pytest.mark.filterwarnings("ignore:.* runs once for each example")
@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize(
    "network",
    [Slightly, SlightlyByValue, Remembering, Counting, lambda: Counting(nn.Buffer), Last],
    ids=["mean", "mean by value", "number", "parameter", "buffer", "last"],
)
def test_no_example_reaches_the_features_of_another(network, row):
    other = X.clone()
    other[row] += 20.0
    found = [extract(network(), TensorDataset(x, Y), batch_size=7).x for x in (X, other)]
    assert torch.equal(found[0].ne(found[1]).any(1), torch.arange(40) == row)


@pytest.mark.parametrize("row", [0, 3])  # the first is among the rows that are compared before all others
def test_an_example_with_which_a_function_fails_does_not_change_how_the_others_run(row):
    other = X.clone()
    other[row] += 20.0
    assert torch.equal(extract(Factored(), data(), batch_size=7).x, X)
    with pytest.raises(UnprotectedUpdateError, match="catches an error of torch"):
        extract(Factored(), TensorDataset(other, Y), batch_size=7)


@pytest.mark.filterwarnings("ignore:.* runs once for each example")
def test_a_network_cannot_read_the_memory_of_other_examples():
    class Whole(nn.Module):
        def forward(self, x):
            return x + x.untyped_storage().nbytes()

    # Of one example; the comparison with a batch of eight, which has more memory, refuses it.
    with pytest.raises(UnsupportedModuleError, match="alone and beside others"):
        extract(Whole(), data())
    assert torch.equal(ExampleFeatures(Whole())(X), X + 24)


@pytest.mark.filterwarnings("ignore:.* runs once for each example")
def test_a_network_that_starts_from_its_first_batch_is_refused():
    class ActNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(6))

        def forward(self, x):
            if not self.loc.any():
                with torch.no_grad():
                    self.loc.copy_(x.mean(0))
            return x - self.loc

    network = ActNorm()
    with pytest.raises(UnsupportedModuleError, match="alone and beside others"):
        extract(network, data())
    assert not network.loc.any()


def test_a_network_that_keeps_what_cannot_be_undone_is_refused(tmp_path):
    class Filing(nn.Module):
        def forward(self, x):
            (tmp_path / "seen").write_text(str(float(x.mean())))
            return x

    class Generating(nn.Module):
        def __init__(self):
            super().__init__()
            self.numbers = (number for number in range(10**6))

        def forward(self, x):
            return x + 1e-9 * next(self.numbers) * float(x.sum())

    with pytest.raises(UnprotectedUpdateError, match=r"opens .*seen"):
        extract(Filing(), data())
    assert not (tmp_path / "seen").exists()
    with pytest.raises(UnprotectedUpdateError, match="cannot be restored after an example") as caught:
        extract(Generating(), data())
    assert "trust" not in str(caught.value)


def test_a_network_that_cannot_be_vectorised_runs_once_for_each_example():
    with pytest.warns(UserWarning, match=r"Remembering runs once for each example, which takes longer: vmap: .*item"):
        features = extract(network := Remembering(), data(), batch_size=7)
    assert torch.equal(features.x, X)
    assert network.seen == 0.0


def test_targets_of_a_wrong_type_are_refused_before_the_features_are_computed(network, monkeypatch):
    monkeypatch.setattr(extraction, "_computed", None)
    with pytest.raises(DataError, match="y must be one integer per example"):
        extract(network, TensorDataset(X, Y.to(torch.complex64)))


@pytest.mark.filterwarnings("ignore:.* runs once for each example")
def test_a_network_may_change_its_input_and_return_the_same_memory():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("out", torch.zeros(1, 6), persistent=False)

        def forward(self, x):
            if len(x) > 1:
                return x.sub_(0.5)
            self.out.copy_(x.sub_(0.5))
            return self.out

    before = X.clone()
    assert torch.equal(extract(InPlace(), data(), batch_size=7).x, X - 0.5)
    assert torch.allclose(extract(nn.SiLU(inplace=True), data(), batch_size=7).x, F.silu(X))
    assert torch.equal(before, X)


def test_a_network_that_never_sees_values_may_keep_anything():
    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.numbers = (number for number in range(10**6))

        def forward(self, x):
            return x.square()

    assert torch.equal(extract(Holding(), data()).x, X.square())


@pytest.mark.filterwarnings("ignore:.* runs once for each example")
@pytest.mark.parametrize("batch_size", [1, 7])
def test_features_of_different_shapes_are_refused(batch_size):
    class Varying(nn.Module):
        def forward(self, x):
            return x[:, :1] if float(x[0, 0]) == float(X[1, 0]) else x

    with pytest.raises(DataError, match=r"must have the same shape, got \(6,\) and \(1,\)"):
        extract(Varying(), data(), batch_size=batch_size)


def test_a_data_set_that_changes_mixes_or_repeats_is_refused(network):
    with pytest.raises(DataError, match="gives different values each time"):
        extract(network, Own(lambda row, x: x + torch.rand(6)))
    with pytest.raises(DataError, match="mixes its rows"):
        extract(network, Mixup())
    with pytest.raises(UnsupportedLoaderError, match="more than once"):
        extract(network, torch.utils.data.Subset(data(), [0, 1, 1]))
    with pytest.raises(DataError, match="must be a map-style data set"):
        extract(network, DataLoader(data()))


class Mixup(Dataset):
    def __init__(self):
        self.x = X

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return (self.x[row] + self.x[(row + 1) % len(self.x)]) / 2, int(Y[row])


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: x.sum(1), r"one row per example, got torch.float32 of shape \(1,\)"),
        (lambda x: (x, x), "one tensor of floats with one row per example, got tuple"),
        (lambda x: x[:1], "one row per example"),
        (lambda x: x.long(), "one tensor of floats"),
        (lambda x: x @ x.new_zeros(5, 5), "does not take inputs of shape"),
        (lambda x: x / 0, "features of row 0 are NaN or infinite"),
    ],
)
def test_unusable_outputs_are_refused(forward, message):
    class Wrong(nn.Module):
        def forward(self, x):
            return forward(x)

    with pytest.raises(ValueError, match=message):
        extract(Wrong(), data())


def test_infinite_features_are_refused_with_their_row():
    class Root(nn.Module):
        def forward(self, x):
            return x.log()

    x = X.clone() + 0.1
    x[5, 0] = 0.0
    with pytest.raises(DataError, match="the features of row 5 are NaN or infinite"):
        extract(Root(), TensorDataset(x, Y))


def test_a_privately_trained_network_is_refused():
    network = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=2.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    model = DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise)
    extract(network, data())
    model.fit(DataLoader(data(), batch_size=10), 1)
    with pytest.raises(UnsupportedModuleError, match="Linear was trained privately"):
        extract(network[0], data())


def test_splits_keep_the_fingerprint_of_the_test_data_as_read():
    read = load_dataset("synthetic", shape=[1, 8, 8], num_train=20, num_test=10, num_classes=3)
    found = extract_splits(nn.Sequential(Scattering2D(1, (8, 8), 2), nn.Flatten(1, 2)), read)
    assert found.example_shape == (3, 4, 4)
    assert (len(found.train), len(found.test), found.num_classes) == (20, 10, 3)
    assert found.test_fingerprint == read.test_fingerprint
    assert found.network_defaults()["in_channels"] == 3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_another_device_gives_the_same_and_the_network_stays(network):
    found = extract(network, data(), device="cuda")
    assert torch.allclose(found.x, network(X).detach(), atol=1e-5)
    assert found.x.device.type == network.layer.weight.device.type == "cpu"
