"""Folders and archives of small images, and their data sets."""

import zipfile

import numpy as np
import torch
from PIL import Image

from dpmodel.data import load_dataset

FORMATS = {".png": "RGB", ".bmp": "L", ".gif": "P", ".jpg": "RGB", ".tif": "RGBA", ".ppm": "RGB"}


def save(root, number=6, size=(5, 4), classes=("cat", "dog")):
    generator = np.random.default_rng(3)
    for part in ("train", "test"):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for index in range(number):
                pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    return root


def zipped(root, path, inside="", order=1):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*"))[::order]:
            archive.write(file, f"{inside}{file.relative_to(root)}")
    return path


def read(root, **options):
    return load_dataset("image_folder", root=root, **options)


def same(one, other):
    parts = ((one.train, other.train), (one.test, other.test))
    equal = all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in parts)
    return equal and one.num_classes == other.num_classes


def files(cache):
    return sorted(cache.iterdir()) if cache.exists() else []
