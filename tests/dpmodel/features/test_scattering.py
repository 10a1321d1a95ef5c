from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from dpmodel.features import Scattering2D
from dpmodel.features import scattering as module
from mechanisms.engines.base import ENGINES
from mechanisms.engines.batch import Batch
from mechanisms.engines.isolation.isolated import isolated
from mechanisms.engines.verification import disagreement

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "scattering2d.npz")

#: Name -> (J, L, rows and columns of the picture), as in make_scattering_golden.py.
CASES = {
    "mnist": (2, 8, (slice(0, 28), slice(28, 56))),
    "square": (2, 8, (slice(8, 40), slice(10, 42))),
    "odd": (3, 6, (slice(11, 38), slice(5, 50))),
    "one_scale": (1, 5, (slice(3, 15), slice(30, 41))),
}


@pytest.fixture
def digits():
    """Four digits, (4, 1, 28, 28)."""
    picture = torch.from_numpy(GOLDEN["picture"].astype(np.float32) / 255.0)
    return picture.unfold(0, 28, 28).unfold(1, 28, 28).reshape(4, 1, 28, 28)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_coefficients_equal_those_of_kymatio(name, dtype):
    scales, angles, place = CASES[name]
    image = torch.from_numpy(GOLDEN["picture"][place].astype(np.float64) / 255.0).to(dtype)
    found = Scattering2D(scales, tuple(image.shape), angles)(image)
    assert found.dtype == dtype
    assert found.shape == GOLDEN[name].shape
    assert (found.double() - torch.from_numpy(GOLDEN[name]).double()).abs().max() < 1e-4


def test_shapes_and_channels(digits):
    assert Scattering2D()(digits).shape == (4, 1, 81, 7, 7)
    assert Scattering2D(J=2, shape=(32, 32))(torch.rand(2, 3, 32, 32)).shape == (2, 3, 81, 8, 8)
    transform = Scattering2D(J=3, shape=(33, 20), L=4)
    assert (transform.channels, transform.output_shape) == (1 + 12 + 48, (4, 2))
    assert transform(torch.rand(33, 20)).shape == (61, 4, 2)
    assert Scattering2D()(digits[:0]).shape == (0, 1, 81, 7, 7)


def test_a_batch_is_its_images_one_by_one_whatever_the_chunks(digits, monkeypatch):
    transform = Scattering2D()
    together = transform(digits)
    assert torch.allclose(together, torch.cat([transform(digit[None]) for digit in digits]), atol=1e-6)
    monkeypatch.setattr(module, "_IN_CACHE", 1)
    assert torch.allclose(together, transform(digits), atol=1e-6)


def test_a_shift_of_a_cell_moves_the_coefficients_by_a_cell(digits):
    canvas = nn.functional.pad(digits.double(), (20, 24, 20, 24))
    transform = Scattering2D(J=2, shape=(72, 72))
    one, other = transform(canvas), transform(canvas.roll((4, -8), (-2, -1)))
    assert torch.allclose(one[..., :-1, 2:], other[..., 1:, :-2], atol=1e-12)
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_constant_changes_the_averages_only(digits):
    transform, x = Scattering2D(), digits.double()
    one, other = transform(x), transform(x + 0.7)
    assert torch.allclose(other[:, :, 0], one[:, :, 0] + 0.7)
    assert torch.allclose(other[:, :, 1:], one[:, :, 1:], atol=1e-9)


def test_averages_are_linear_and_the_rest_homogeneous(digits):
    transform, x = Scattering2D(), digits.double()
    both = transform(x[:1] + 2 * x[1:2])[:, :, 0]
    assert torch.allclose(both, (transform(x[:1]) + 2 * transform(x[1:2]))[:, :, 0])
    assert torch.allclose(transform(-3 * x)[:, :, 1:], 3 * transform(x)[:, :, 1:])


def test_a_plane_wave_is_found_at_its_scale_and_angle():
    transform, place = Scattering2D(J=3, shape=(64, 64), L=8), torch.arange(64.0)
    for scale in range(3):
        for index in (0, 3, 6):
            angle = torch.tensor((3 - index) * torch.pi / 8)
            along = place[:, None] * angle.cos() + place[None, :] * angle.sin()
            first_order = transform((0.75 * torch.pi / 2**scale * along).cos())[1:25, 2:-2, 2:-2].mean((1, 2))
            assert int(first_order.argmax()) == 8 * scale + index


def test_energy_does_not_grow(digits):
    x = digits.double()
    found = Scattering2D()(x)
    # Each coefficient stands for 16 pixels; reflected borders count outside of the image.
    assert float(16 * found.square().sum()) < 1.05 * float(x.square().sum())
    assert float(16 * found.square().sum()) > 0.5 * float(x.square().sum())


def test_there_is_nothing_to_train_or_save_and_gradients_pass(digits):
    transform = Scattering2D()
    assert not list(transform.parameters())
    assert not transform.state_dict()
    x = torch.zeros_like(digits[:1]).requires_grad_()
    transform(x).sum().backward()
    assert bool(x.grad.isfinite().all())
    x = torch.rand(1, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Scattering2D(2, (6, 6), 2), x)


def test_a_moved_or_converted_transform_gives_the_same(digits):
    wanted = Scattering2D()(digits)
    assert torch.equal(Scattering2D().float()(digits), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Scattering2D()(digits), wanted)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same(digits):
    on_gpu = Scattering2D().cuda()(digits.cuda()).cpu()
    assert torch.allclose(on_gpu, Scattering2D()(digits), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"J": 5}, "images of 28 x 28 are too small for J=5, which needs more than 32 pixels: use J=4 or less"),
        ({"shape": (2, 9)}, "too small for J=2, which needs more than 4 pixels: they are too small for any J"),
        ({"J": 0}, "J must be"),
        ({"L": 1.5}, "L must be"),
        ({"shape": 28}, "shape must be the height and width of the images, got 28"),
        ({"shape": (28, 0)}, r"shape\[1\] must be"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scattering2D(**arguments)


@pytest.mark.parametrize(
    "x", [torch.zeros(1, 1, 32, 32), torch.zeros(28), torch.zeros(1, 1, 28, 28).byte(), torch.zeros(1, 28, 28).half()]
)
def test_wrong_inputs_are_refused(x):
    with pytest.raises(ValueError, match=r"takes float32 or float64 of shape \(..., 28, 28\), got torch"):
        Scattering2D()(x)


def test_each_image_has_its_own_coefficients_bit_for_bit():
    images = torch.rand(9, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    other = images.clone()
    other[4] += 1.0
    scattering = Scattering2D(J=1, shape=(12, 12), L=2)
    one, two = (isolated(lambda image: scattering(image).squeeze(0), x) for x in (images, other))
    assert torch.equal(one.ne(two).flatten(1).any(1), torch.arange(9) == 4)


def test_it_takes_the_transforms_of_torch_func():
    scattering = Scattering2D(J=1, shape=(12, 12), L=2)
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(vmap(vmap(scattering))(images), scattering(images), atol=1e-6)
    slopes = vmap(grad(lambda image: scattering(image).square().sum()))(images)
    leaf = images.clone().requires_grad_()
    scattering(leaf).square().sum().backward()
    assert torch.allclose(slopes, leaf.grad, atol=1e-5)


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap"])
def test_gradients_through_the_transform_are_those_of_single_examples(engine):
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), Scattering2D(J=1, shape=(12, 12), L=2), nn.Flatten(), nn.Linear(2 * 3 * 36, 3)
    )
    batch = Batch(torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 2, 1, 0]))
    assert disagreement(ENGINES.get(engine), network, nn.CrossEntropyLoss(), batch) is None
