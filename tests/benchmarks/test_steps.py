"""Every row of the table of steps takes steps that change the weights."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def engines():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        before = set(sys.modules)
        yield importlib.import_module("engines")
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == FOLDER:
                del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lenet5", "linear"])
def test_every_row_takes_its_steps(engines, model):
    workload = engines.WORKLOADS[model]
    names = [name for name in engines.KNOWN if engines.makes_sense(name, workload)]
    steps, failed = engines.ready_steps(names, workload, 8, "cpu")
    assert failed == {}
    assert set(steps) >= {"plain", "bookkeeping", "opacus-ghost"}
