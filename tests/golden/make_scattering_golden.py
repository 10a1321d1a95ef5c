"""Writes scattering2d.npz: scattering coefficients of MNIST images by kymatio 0.3.0, which shares no code with ours.

Run with ``pip install kymatio==0.3.0`` and ``python tests/golden/make_scattering_golden.py``. ``kymatio.torch`` imports
functions that newer versions of SciPy have removed, so its front end in two dimensions is imported directly.
"""

from pathlib import Path

import numpy as np
import torch

from dpmodel.data import load_dataset

#: Name -> (J, L, rows and columns of the picture of four digits).
CASES = {
    "mnist": (2, 8, (slice(0, 28), slice(28, 56))),
    "square": (2, 8, (slice(8, 40), slice(10, 42))),
    "odd": (3, 6, (slice(11, 38), slice(5, 50))),
    "one_scale": (1, 5, (slice(3, 15), slice(30, 41))),
}


def main():
    from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

    x = load_dataset("mnist", test_limit=4).test.x[:, 0].numpy()
    picture = np.block([[x[0], x[1]], [x[2], x[3]]])
    arrays = {"picture": picture}
    for name, (scales, angles, place) in CASES.items():
        image = torch.from_numpy(picture[place].astype(np.float32) / 255.0)
        scattering = ScatteringTorch2D(J=scales, shape=tuple(image.shape), L=angles)
        arrays[name] = scattering(image).numpy().astype(np.float32)
    np.savez_compressed(Path(__file__).with_name("scattering2d.npz"), **arrays)


if __name__ == "__main__":
    main()
