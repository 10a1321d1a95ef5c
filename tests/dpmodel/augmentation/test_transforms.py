"""Crops and flips: equal to torch's own padding and slicing, and uniform over their outcomes."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap
from torch.nn import functional as F

from dpmodel.augmentation import AUGMENTATIONS, HorizontalFlip, RandomCrop, build_transform

IMAGES = torch.arange(2.0 * 3 * 6 * 7).reshape(2, 3, 6, 7)


@pytest.mark.parametrize("padding", [1, 2, 5])
def test_a_crop_is_a_window_of_the_image_padded_by_reflection(padding):
    padded, places = F.pad(IMAGES, [padding] * 4, mode="reflect"), range(2 * padding + 1)
    for top in places:
        for left in places:
            numbers = (torch.tensor([[top, left]] * 2) + 0.5) / (2 * padding + 1)
            found = RandomCrop(padding)(IMAGES, numbers)
            assert torch.equal(found, padded[:, :, top : top + 6, left : left + 7])


def test_each_copy_gets_its_own_crop_and_the_shifts_are_uniform():
    numbers = torch.rand(9000, 2)
    image = torch.arange(64.0).reshape(1, 1, 8, 8).expand(9000, 1, 8, 8)
    corners = RandomCrop(1)(image, numbers)[:, 0, 3, 3]
    counts = torch.bincount(corners.long(), minlength=64).reshape(8, 8)
    assert int((counts > 0).sum()) == 9
    assert torch.equal(counts[2:5, 2:5] > 0, torch.ones(3, 3, dtype=torch.bool))
    assert int(counts[2:5, 2:5].min()) > 850
    assert int(counts.max()) < 1150


def test_the_largest_number_below_one_stays_inside():
    last = torch.nextafter(torch.ones(2, 2), torch.zeros(2, 2))
    for padding in (1, 4, 5):
        assert torch.isfinite(RandomCrop(padding)(IMAGES, last)).all()
    assert torch.equal(HorizontalFlip()(IMAGES, last[:, :1]), IMAGES)


def test_half_of_the_images_are_mirrored():
    found = HorizontalFlip()(IMAGES, torch.tensor([[0.499], [0.5]]))
    assert torch.equal(found[0], IMAGES[0].flip(-1))
    assert torch.equal(found[1], IMAGES[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_views_are_like_the_images_also_under_vmap(name, dtype):
    transform, images = build_transform(name), IMAGES.to(dtype)
    numbers = torch.rand(5, 2, transform.numbers)
    found = vmap(lambda drawn: transform(images, drawn))(numbers)
    assert found.dtype == dtype
    assert found.shape == (5, *images.shape)
    for row, drawn in zip(found, numbers, strict=True):
        assert torch.equal(row, transform(images, drawn))


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_vectors_are_refused(name):
    with pytest.raises(
        ValueError, match=r"needs images, examples of shape \(channels, height, width\), got shape \(5,"
    ):
        build_transform(name)(torch.zeros(2, 5, 4), torch.rand(2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(0), "padding must be an integer of at least 1"),
        (lambda: RandomCrop(6)(IMAGES, torch.rand(2, 2)), r"padding=6 must be below height and width, got \(6, 7\)"),
        (lambda: build_transform("random_crip"), "did you mean 'random_crop'"),
        (lambda: build_transform("random_crop", pading=3), "did you mean 'padding'"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
