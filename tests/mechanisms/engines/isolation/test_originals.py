"""Replaced code of PyTorch is found by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mechanisms.engines.isolation.originals import replaced_function, replaced_kernel

PLACES = {
    "torch.nn.functional.linear": (F, "linear"),
    "torch.nn.functional.layer_norm": (F, "layer_norm"),
    "torch.layer_norm": (torch, "layer_norm"),
    "torch.Tensor.norm": (torch.Tensor, "norm"),
    "torch.Tensor.view": (torch.Tensor, "view"),
    "torch.nn.Linear.forward": (nn.Linear, "forward"),
    "torch.nn.Conv2d._conv_forward": (nn.Conv2d, "_conv_forward"),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_replaced_function_of_torch_is_found(name, monkeypatch):
    assert replaced_function() is None
    owner, attribute = PLACES[name]
    monkeypatch.setattr(owner, attribute, lambda *args, **kwargs: None, raising=False)
    assert replaced_function() == name
    monkeypatch.undo()
    assert replaced_function() is None


def test_display_methods_may_be_replaced_and_new_methods_added(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "__repr__", lambda self: "tensor")
    monkeypatch.setattr(torch.Tensor, "described", lambda self: "tensor", raising=False)
    assert replaced_function() is None


@pytest.mark.parametrize(("key", "found"), [("CPU", "aten::relu"), ("AutogradCPU", "aten::relu")])
def test_a_replaced_kernel_is_found_while_it_is_registered(key, found):
    assert replaced_kernel() is None
    library = torch.library.Library("aten", "IMPL")
    library.impl("relu", lambda x: x.clamp(min=0), key)
    assert replaced_kernel() == found
    library._destroy()
    assert replaced_kernel() is None


def test_kernels_that_compute_no_values_and_other_operators_are_ignored():
    library = torch.library.Library("dpmodel_tests_originals", "DEF")
    library.define("same(Tensor x) -> Tensor")
    library.impl("same", lambda x: x.clone(), "CPU")
    library.impl("same", torch.empty_like, "Meta")
    assert replaced_kernel() is None
    library._destroy()
