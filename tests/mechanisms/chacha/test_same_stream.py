"""Every backend against the definition in NumPy, word for word, and the drawn numbers against their distributions.

Keys are fixed: a failure is a defect, never chance.
"""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from mechanisms.chacha import reference
from mechanisms.chacha.backends import difference_in

HERE = Path(__file__).parent
ROOT = Path(__file__).parents[3]


def _loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draws = _loaded(HERE / "draws.py")
TRITON = tuple(map(int, version("triton").split(".")[:2])) if importlib.util.find_spec("triton") else (0, 0)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_triton = pytest.mark.skipif(TRITON < (3, 0), reason="needs Triton")
needs_interpreter = pytest.mark.skipif(TRITON < (3, 2), reason="needs Triton 3.2: before, interpreted stores are lost")
#: Name of the backend, its device, and the sample size.
WAYS = [
    pytest.param(("torch", "cpu", 240_000), id="torch-cpu"),
    pytest.param(("triton", "cpu", 240_000), id="triton-interpreted", marks=[needs_interpreter, pytest.mark.slow]),
    pytest.param(("torch", "cuda", 3_000_000), id="torch-cuda", marks=[pytest.mark.cuda, needs_cuda]),
    pytest.param(("triton", "cuda", 3_000_000), id="triton-cuda", marks=[pytest.mark.cuda, needs_cuda, needs_triton]),
]
#: Makes the import of Triton fail, as if it were not installed.
WITHOUT_TRITON = (
    "import sys; sys.modules['triton'] = None; import runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
)


@pytest.fixture(scope="module", params=WAYS)
def drawn(request, tmp_path_factory):
    backend, device, samples = request.param
    file = tmp_path_factory.mktemp("draws") / "draws.npz"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    if (backend, device) == ("triton", "cpu"):
        environment["TRITON_INTERPRET"] = "1"
    code = [] if backend == "triton" else ["-W", "ignore", "-c", WITHOUT_TRITON]
    command = [sys.executable, *code, str(HERE / "draws.py"), device, str(samples), str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(file) as found:
        arrays = dict(found)
    assert str(arrays.pop("backend")) == backend, f"another backend was chosen: {done.stderr[-4000:]}"
    return arrays


def assert_same(what, found, expected, tolerance=0.0):
    difference = difference_in(what, found, np.asarray(expected), tolerance)
    assert not difference, difference


def test_the_block_of_the_rfc_has_the_printed_words(drawn):
    # RFC 8439, section 2.3.2
    printed = """e4e7f110 15593bd1 1fdd0f50 c47120a3 c7f4d1c7 0368c033 9aaa2204 4e6cd4c3
                 466482d2 09aa9f07 05d7c214 a2028bd9 d19c12b5 b94e16de e883d0cb 4e3c50a2"""
    expected = np.array([int(word, 16) for word in printed.split()], dtype=np.uint32)
    assert_same("word", drawn["rfc"].view(np.uint32)[:, 0], expected)


@pytest.mark.parametrize("start", draws.STARTS)
def test_words_match_the_definition_bit_for_bit(drawn, start):
    expected = reference.block_words(draws.MATERIAL, start, draws.BLOCKS)
    assert_same("(word, block)", drawn[f"words {start}"].view(np.uint32), expected)


@pytest.mark.parametrize("size", [size for size, _ in draws.SINGLES])
def test_float32_numbers_are_the_transform_of_the_words_each_at_its_index(drawn, size):
    words = reference.block_words(draws.MATERIAL, 0, -(-size // 10))
    found = drawn[f"singles {size}"].astype(np.float64) - draws.LEVEL
    # The error of the sines (2**-20.5) times the largest radius (9.5), and the rounding of the sum.
    assert_same("number", found, reference.singles(words, size, draws.SCALE), 1e-5 * draws.SCALE + 1e-6)
    assert int(drawn[f"blocks {size}"]) == -(-size // 10)


def test_a_long_draw_is_also_the_transform_of_the_words(drawn):
    numbers = drawn["sample float32"]
    words = reference.block_words(draws.MATERIAL, draws.SAMPLE_START, -(-len(numbers) // 10))
    assert_same("number", numbers.astype(np.float64), reference.singles(words, len(numbers)), 1e-5)


@pytest.mark.parametrize(("size", "threshold"), draws.COINS)
def test_coins_compare_64_bit_words_with_the_threshold(drawn, size, threshold):
    words = reference.block_words(draws.MATERIAL, 0, -(-size // 8))
    assert_same("coin", drawn[f"coins {size} {threshold}"], reference.coins(words, size, threshold))


def test_reserved_blocks_have_no_gap_and_no_overlap(drawn):
    assert_same("counter", drawn["reserved"], [5, 6, 13, 13 + 2**33])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_are_normal_with_exactly_the_stated_scale(drawn, dtype):
    numbers = drawn[f"sample {dtype}"].astype(np.float64)
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert stats.kstest(numbers * 1.03, "norm").pvalue < 1e-6
    assert stats.kstest(numbers + 0.02, "norm").pvalue < 1e-6
    assert abs((numbers**2).mean() - 1) < 4 * np.sqrt(2 / len(numbers))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_fill_a_thousand_quantile_bins_equally(drawn, dtype):
    numbers = drawn[f"sample {dtype}"].astype(np.float64)
    parts = np.minimum((stats.norm.cdf(numbers) * 1000).astype(int), 999)
    assert stats.chisquare(np.bincount(parts, minlength=1000)).pvalue > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_reach_both_tails_with_the_correct_frequency(drawn, dtype):
    numbers = drawn[f"sample {dtype}"]
    for level in (1.0, 2.0, 3.0, 3.5, 4.0, 4.5, 5.0):
        expected = len(numbers) * stats.norm.sf(level)
        for sign in (1, -1):
            beyond = int(np.count_nonzero(sign * numbers > level))
            assert abs(beyond - expected) < 4.5 * np.sqrt(expected) + 3, (level, sign, beyond, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_of_one_block_and_of_neighbours_are_uncorrelated(drawn, dtype):
    numbers = drawn[f"sample {dtype}"].astype(np.float64)
    segment = -(-len(numbers) // (10 if dtype == "float32" else 8))
    for lag in (1, 2, 31, 128, 256, *(segment * times for times in range(1, 8)), segment - 1, segment + 1):
        first, second = numbers[:-lag], numbers[lag:]
        for power in (1, 2):
            correlation = np.corrcoef(first**power, second**power)[0, 1]
            assert abs(correlation) < 5 / np.sqrt(len(first)), (lag, power, correlation)


def test_coins_have_the_stated_rate_in_every_lane_independently(drawn):
    coins = drawn["sample coins"].astype(np.float64)
    lanes = coins[: len(coins) // 8 * 8].reshape(8, -1)
    assert stats.binomtest(int(coins.sum()), len(coins), draws.RATE).pvalue > 1e-3
    for lane, heads in enumerate(lanes.sum(axis=1)):
        assert stats.binomtest(int(heads), lanes.shape[1], draws.RATE).pvalue > 1e-4, f"lane {lane}"
    for lag in (1, 2, 32, 128, lanes.shape[1], 4 * lanes.shape[1]):
        assert abs(np.corrcoef(coins[:-lag], coins[lag:])[0, 1]) < 5 / np.sqrt(len(coins) - lag), f"lag {lag}"
