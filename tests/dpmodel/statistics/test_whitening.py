"""The private correlation of channels, and layers that remove it."""

import copy

import numpy as np
import pytest
import torch

from dpmodel import GaussianEvent, Ledger
from dpmodel.config.identity import result_settings
from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from dpmodel.statistics import PrivateStatistics, Standardise, private_mean_and_variance
from mechanisms.engines.base import ENGINES
from monitors.errors import CheckpointError, ConfigError, DataError

from .test_normalisation import NORMALISE, WHITENED, config
from .test_private_statistics import fitted

#: 300 images of three channels, which are mixtures of each other.
IMAGES = torch.einsum(
    "dc,nchw->ndhw",
    torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.8], [0.2, 0.0, 0.3]]),
    torch.randn(300, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
)
FREE = {"noise_multiplier": 1e-9, "norm_bound": 100.0, "square_bound": 100.0}


def released(x=IMAGES, ledger=None, **options):
    ledger = Ledger() if ledger is None else ledger
    return private_mean_and_variance(x, ledger=ledger, correlation=True, **{**FREE, **options})


def correlation_of(values):
    """The correlation of the channels of (N, C, ...) in NumPy."""
    return np.corrcoef(values.double().transpose(0, 1).flatten(1).numpy())


@pytest.fixture
def unclipped(monkeypatch):
    for module in ("moments", "private_statistics"):
        monkeypatch.setattr(f"dpmodel.statistics.{module}.correlation_bound", lambda channels: 100.0 * channels)


@pytest.mark.usefixtures("unclipped")
@pytest.mark.parametrize(
    ("x", "dims"),
    [
        (IMAGES, None),
        (IMAGES[:, :, :, 0], None),
        (IMAGES.permute(0, 2, 3, 1), (1, 2)),
        (IMAGES.permute(0, 2, 1, 3), (1, 3)),
        (IMAGES.mean((2, 3)), None),
    ],
)
def test_without_clipping_and_noise_it_is_numpys_and_full_whitening_removes_it(x, dims):
    found = released(x, dims=dims)
    axis = next(axis for axis in range(1, x.dim()) if axis not in (dims or (2, 3)))
    expected = np.atleast_2d(correlation_of(x.movedim(axis, 1)))
    assert np.allclose(found.correlation, expected, atol=2e-3)
    white = found.normalise(whitening=1.0)(x)
    assert white.shape == x.shape
    assert white.is_contiguous()
    assert np.allclose(np.atleast_2d(correlation_of(white.movedim(axis, 1))), np.eye(len(expected)), atol=5e-3)
    half = found.normalise(whitening=0.5)(x).movedim(axis, 1).transpose(0, 1).flatten(1).double()
    assert np.isclose(half.square().mean(), 1.0, atol=1e-3)
    second = half @ half.T / half.shape[1]
    values = torch.linalg.eigvalsh(torch.from_numpy(expected))
    assert np.allclose(torch.linalg.eigvalsh(second), values.sqrt() / values.sqrt().mean(), atol=5e-3)


def test_long_examples_are_clipped_to_half_the_number_of_channels():
    x = IMAGES.clone()
    found = released(x)
    z = (x.double() - found.mean.reshape(3, 1, 1)) * found.variance.rsqrt().reshape(3, 1, 1)
    products = np.einsum("nchw,ndhw->ncd", z.numpy(), z.numpy()) / 16
    norms = np.linalg.norm(products, axis=(1, 2))
    clipped = products * np.minimum(1.0, 1.5 / norms)[:, None, None]
    assert (norms > 1.5).any()
    assert np.allclose(found.correlation, clipped.mean(axis=0), atol=3e-3)


def test_the_noise_is_as_stated_and_eigenvalues_below_it_are_raised():
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(1))
    bounds = {"norm_bound": 15.0, "square_bound": 25.0}  # noisy means and variances hardly add to the noise
    found, free = (released(x, **bounds, noise_multiplier=multiplier) for multiplier in (0.05, 1e-9))
    noise = (found.correlation - free.correlation).numpy()[np.triu_indices(40, 1)]
    assert found.correlation_noise == pytest.approx(0.05 * 20 / 2**0.5 / 50, rel=0.01)
    assert noise.std() == pytest.approx(found.correlation_noise, rel=0.15)  # six standard deviations of this estimate
    loud = released(x, noise_multiplier=50.0)  # all noise: nothing to be removed
    values = torch.linalg.eigvalsh(loud.normalise(whitening=1.0).mixing.double())
    assert values.max() / values.min() < 1.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_the_layer_takes_every_type_that_it_takes_without_correlation(dtype):
    found = released()
    x = (10 * IMAGES[:4]).to(dtype)
    plain, white = found.normalise(), found.normalise(whitening=0.5)
    assert white(x).dtype == plain(x).dtype
    assert torch.allclose(white(x).double(), copy.deepcopy(white).double()(x.double()), rtol=1e-3, atol=1e-3)
    assert white(x[:0]).shape == x[:0].shape
    one = Standardise(torch.tensor(1.0), torch.tensor(4.0), mixing=torch.tensor([[6.0]]))
    assert torch.equal(one(torch.tensor([[3.0, 1.0]])), torch.tensor([[6.0, 0.0]]))


def test_autocast_lowers_no_precision():
    white = released().normalise(whitening=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = white(IMAGES)
    assert torch.equal(low, white(IMAGES))


def test_no_whitening_is_the_layer_without_correlation():
    found = released()
    assert found.normalise().mixing is None
    plain = Standardise(found.mean.reshape(3, 1, 1), found.variance.reshape(3, 1, 1))
    assert torch.equal(found.normalise()(IMAGES), plain(IMAGES))


@pytest.mark.sample(3)
@pytest.mark.parametrize("engine", ENGINES.names())
def test_every_engine_trains_behind_the_layer(engine):
    layer = private_mean_and_variance(
        IMAGES, noise_multiplier=8.0, norm_bound=1.0, square_bound=0.7, ledger=Ledger(), correlation=True
    ).normalise(whitening=0.5)
    before = layer.mixing.clone()
    model = fitted(layer, engine=engine)
    assert torch.equal(layer.mixing, before)
    assert model.ledger.rows[0] == (GaussianEvent(8.0), 3)


def test_a_file_gives_back_the_correlation_and_its_cost(tmp_path):
    found = released(noise_multiplier=8.0)
    found.save(tmp_path / "s.safetensors")
    again = PrivateStatistics.load(tmp_path / "s.safetensors")
    assert again.ledger.rows == ((GaussianEvent(8.0), 3),)
    assert torch.equal(again.normalise(whitening=0.3)(IMAGES), found.normalise(whitening=0.3)(IMAGES))
    with pytest.raises(ValueError, match="lacks the 3 releases"):
        PrivateStatistics.load(tmp_path / "s.safetensors", Ledger().record(GaussianEvent(8.0), 2))


@pytest.mark.parametrize(
    "correlation",
    [
        torch.eye(2).double(),
        torch.eye(3),
        torch.full((3, 3), torch.nan).double(),
        torch.full((3, 3), torch.inf).double(),  # its eigenvalues cannot be computed
        torch.eye(3).double().roll(1),
    ],
)
def test_a_damaged_correlation_is_refused(tmp_path, correlation):
    path = tmp_path / "s.safetensors"
    released(noise_multiplier=8.0).save(path)
    tensors, values = read_tensor_file(path)
    write_tensor_file(path, {**tensors, "correlation": correlation}, values)
    with pytest.raises(CheckpointError, match=r"s\.safetensors does not hold private statistics"):
        PrivateStatistics.load(path)


@pytest.mark.parametrize("whitening", [-0.1, 1.1, float("nan"), "much", "", None])
def test_a_wrong_share_is_refused(whitening):
    with pytest.raises(ValueError, match="whitening"):
        released().normalise(whitening=whitening)


def test_what_does_not_fit_is_refused_before_anything_is_released(monkeypatch):
    with pytest.raises(ValueError, match=r"needs the correlation .*correlation=True"):
        private_mean_and_variance(IMAGES, ledger=Ledger(), **FREE).normalise(whitening=0.5)
    monkeypatch.setattr("dpmodel.statistics.private_statistics.MOST_CHANNELS", 2)
    ledger = Ledger()
    with pytest.raises(DataError, match="the correlation of 3 features has 9 numbers; at most 2"):
        released(ledger=ledger)
    with pytest.raises(DataError, match="one channel has no correlation"):
        released(IMAGES[:, :1], ledger=ledger)
    assert ledger.total == 0
    with pytest.raises(DataError, match=r"mixing must be a finite matrix of shape \(3, 3\)"):
        Standardise(torch.zeros(3), torch.ones(3), mixing=torch.eye(2))


def test_a_configuration_without_whitening_is_that_of_earlier_versions():
    plain = {**WHITENED, "normalise": {**NORMALISE, "whitening": 0.0}}
    assert "whitening" not in result_settings(config(**plain))["normalise"]
    assert result_settings(config(**WHITENED))["normalise"]["whitening"] == 0.5
    with pytest.raises(ConfigError, match=r"whitening must be in \[0, 1\]"):
        config(normalise={**NORMALISE, "whitening": 2})
