"""Rows are cleared in place, by each backend, and without touching what is kept."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechanisms.engines import row_clearing
from mechanisms.engines.row_clearing import clear_rows_, require_same_as_torch

ROOT = Path(__file__).parents[3]
TRITON = tuple(map(int, version("triton").split(".")[:2])) if importlib.util.find_spec("triton") else (0, 0)
INTERPRETED = """
import torch
from mechanisms.engines import row_kernel
from mechanisms.engines.row_clearing import require_same_as_torch
require_same_as_torch(row_kernel.clear, torch.device("cpu"))
for dtype in (torch.float64, torch.bfloat16):
    rows = torch.full((3, 2, 5), torch.nan, dtype=dtype)
    row_kernel.clear(rows, torch.tensor([True, False, True]))
    assert not rows[1].any() and rows[0].isnan().all() and rows[2].isnan().all()
row_kernel.clear(torch.zeros(3, 0), torch.ones(3, dtype=torch.bool))
print("same")
"""


@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    keep=st.lists(st.booleans(), min_size=5, max_size=5),
    flipped=st.booleans(),
)
def test_rows_that_are_kept_stay_and_all_others_become_zero(shape, keep, flipped):
    kept = torch.tensor(keep)[: shape[0]]
    rows = torch.randn(shape)
    if flipped and len(shape) > 2:
        rows = rows.transpose(0, 1).contiguous().transpose(0, 1)
    rows[~kept] = torch.nan
    before = rows.clone()
    clear_rows_(rows, kept)
    assert torch.equal(rows[kept], before[kept])
    assert not rows[~kept].any()


@pytest.mark.slow
@pytest.mark.skipif(TRITON < (3, 2), reason="needs Triton 3.2: before, interpreted stores are lost")
def test_the_kernel_gives_what_torch_gives():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.parametrize("wrong", [lambda rows, keep: None, lambda rows, keep: rows.zero_()])
def test_a_kernel_that_clears_too_few_or_too_many_rows_is_not_used(wrong):
    with pytest.raises(RuntimeError, match=r"\(5, 3\) are not cleared correctly"):
        require_same_as_torch(wrong, torch.device("cpu"))


def test_a_broken_kernel_is_replaced_with_torchs_operations_and_a_warning(monkeypatch):
    def broken(name):
        raise ImportError("no module named triton")

    monkeypatch.setattr(row_clearing.importlib, "import_module", broken)
    with pytest.warns(RuntimeWarning, match=r"ImportError: no module named triton.*results are the same"):
        clear = row_clearing._clearing_on.__wrapped__(torch.device("cpu"))
    require_same_as_torch(clear, torch.device("cpu"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available() or TRITON < (3, 0), reason="needs a CUDA device and Triton")
def test_on_a_gpu_the_kernel_is_used():
    clear = row_clearing._clearing_on(torch.device("cuda", 0))
    assert clear.__module__.endswith("row_kernel")
