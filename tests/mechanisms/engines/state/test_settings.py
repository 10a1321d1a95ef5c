"""Process settings are restored."""

from __future__ import annotations

import logging
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from mechanisms.engines.state.python_state import PythonState
from mechanisms.engines.state.settings import process_settings

CHANGES = {
    "the default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's mkldnn_enabled": lambda: torch.backends.mkldnn.set_flags(False),
    "torch's cudnn_benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "errors of NumPy": lambda: np.seterr(divide="raise", under="print"),
    "the recursion limit": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1),
    "the switch interval": lambda: sys.setswitchinterval(0.5),
    "logging.disable": lambda: logging.disable(logging.ERROR),
    "warnings.filters": lambda: warnings.filterwarnings("error", message="of a test"),
    "the kind of torch's backward hooks": lambda: setattr(
        torch.nn.modules.module, "_global_is_full_backward_hook", True
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_setting_is_restored(what):
    settings = process_settings()
    CHANGES[what]()
    names = [name for holder in settings if not holder.is_current() for name in holder.put_back()]
    assert names == [what]
    assert all(holder.is_current() for holder in process_settings())
    assert all(holder.is_current() for holder in settings)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor does not flush small numbers")
def test_flushing_of_denormal_numbers_is_restored():
    settings = process_settings()
    torch.set_flush_denormal(True)
    assert [holder.put_back() for holder in settings if not holder.is_current()] == [["flushing of small numbers"]]
    assert float(torch.tensor([1e-41]) * 1.0) > 0


def test_unchanged_settings_are_current():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        settings = process_settings()
        with warnings.catch_warnings(), np.errstate(all="raise"):
            warnings.simplefilter("error")
        assert all(holder.is_current() for holder in settings)


@pytest.mark.parametrize("by_value", [False, True])
def test_global_module_hooks_and_their_state_are_restored(by_value):
    kept = {"calls": 0}
    handle = register_module_forward_hook(lambda module, inputs, output: kept.update(calls=1))
    try:
        state = PythonState(nn.Linear(1, 1), by_value=by_value)
        nn.Linear(1, 1)(torch.ones(1))
        late = register_module_forward_hook(lambda module, inputs, output: None)
        handle.remove()
        assert len(state.restore()) == 3
        assert kept == {"calls": 0}
        assert list(torch.nn.modules.module._global_forward_hooks) == [handle.id]
    finally:
        late.remove()
        handle.remove()
