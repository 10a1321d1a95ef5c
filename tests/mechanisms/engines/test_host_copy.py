"""Copies on the host hold the values of their instant."""

import pytest
import torch

from mechanisms.engines.host_copy import HostCopy

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_copy_holds_the_values_of_the_time_when_it_was_made(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    values = torch.arange(3.0, dtype=torch.float64, device=device)
    copies = []
    for _ in range(50):
        copies.append(HostCopy(values))
        values += 1.0
    assert [copy.read() for copy in copies] == [[float(step), step + 1.0, step + 2.0] for step in range(50)]
