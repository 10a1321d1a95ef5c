import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpmodel.data.images import CHUNK, resize_images
from monitors.errors import DataError


def naive_bilinear(image, size):
    """One image, one pixel at a time, with pixel centres at half-integers and clamped borders."""
    height, width = image.shape
    out = torch.zeros(size, size)
    for row in range(size):
        for column in range(size):
            y = min(max((row + 0.5) * height / size - 0.5, 0), height - 1)
            x = min(max((column + 0.5) * width / size - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = y - top, x - left
            upper = (1 - dx) * image[top, left] + dx * image[top, right]
            lower = (1 - dx) * image[bottom, left] + dx * image[bottom, right]
            out[row, column] = (1 - dy) * upper + dy * lower
    return out


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.sampled_from([(28, 32), (5, 9), (8, 8)]))
def test_enlarging_is_the_textbook_bilinear_rounded_to_bytes(seed, sizes):
    old, new = sizes
    image = torch.randint(256, (1, 1, old, old), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    expected = naive_bilinear(image[0, 0].double(), new)
    assert (resize_images(image, new)[0, 0].double() - expected).abs().max() <= 0.5 + 1e-4


def test_shrinking_widens_the_filter_as_pillow_does():
    image = torch.randint(256, (64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pillow = Image.fromarray(image.numpy()).resize((16, 16), Image.Resampling.BILINEAR)
    expected = torch.tensor(list(pillow.tobytes())).reshape(16, 16)
    assert (resize_images(image[None, None], 16)[0, 0].long() - expected).abs().max() <= 1


def test_images_beyond_one_chunk_are_all_resized():
    images = torch.arange(CHUNK + 3).remainder(256).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    resized = resize_images(images, 6)
    assert resized.shape == (CHUNK + 3, 1, 6, 6)
    assert torch.equal(resized[:, 0, 0, 0], images[:, 0, 0, 0])


def test_images_of_that_size_are_not_copied():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert resize_images(images, 8) is images


def test_an_empty_set_stays_empty():
    assert resize_images(torch.zeros(0, 1, 28, 28, dtype=torch.uint8), 32).shape == (0, 1, 32, 32)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)])
def test_anything_but_byte_images_is_refused(wrong):
    with pytest.raises(DataError, match="images must be uint8"):
        resize_images(wrong, 4)


def test_a_wrong_size_is_refused_by_the_option_name():
    with pytest.raises(ValueError, match="image_size must be an integer of at least 1, got 0"):
        resize_images(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 0)
