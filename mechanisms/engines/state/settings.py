"""Holders of process settings that a network's code can change and read back."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as torch_modules

from mechanisms.engines.precision import coarse_settings
from mechanisms.engines.state.holders import Holder, Sequence
from mechanisms.engines.state.places import Place

#: Smallest normal number; half of it is zero if denormal numbers are flushed.
_SMALLEST = [sys.float_info.min]


def process_settings() -> list[Holder]:
    """Holders of the settings that decide how numbers are computed, and what warnings and logs show.

    Example:
        >>> settings = process_settings()
        >>> limit = sys.getrecursionlimit()
        >>> sys.setrecursionlimit(limit + 1)
        >>> [holder.put_back() for holder in settings if not holder.is_current()]
        [['the recursion limit']]
        >>> sys.getrecursionlimit() == limit
        True
    """
    return [*(Place(*setting) for setting in _SETTINGS), Sequence("warnings.filters", warnings.filters)]


def computing_settings() -> tuple[Any, ...]:
    """The current values of the settings that decide how numbers are computed, to be compared."""
    switches = (read() for name, read, _ in _SETTINGS if name != "warnings.filters")
    reduced = (getattr(place, name) for place, name in coarse_settings())
    return *switches, *reduced, torch.get_default_device()


def hooks_of_all_modules() -> Iterator[tuple[str, Any]]:
    """The dictionaries of the hooks that PyTorch runs for all modules, by name."""
    held = vars(torch_modules).items()
    return ((f"torch's {name}", value) for name, value in held if name.startswith("_global_"))


def _numpy_errors() -> str:
    return ",".join(f"{kind}={what}" for kind, what in np.geterr().items())


def _set_numpy_errors(stated: str) -> None:
    kinds: dict[str, Any] = dict(part.split("=") for part in stated.split(","))
    np.seterr(**kinds)


def _set_filters(filters: list[Any]) -> None:
    warnings.filters = filters
    getattr(warnings, "_filters_mutated", bool)()  # resets the cache of warnings already shown


def _switches() -> Iterator[str]:
    """Switches of PyTorch's libraries, without those of reduced precision, which two interfaces must not mix."""
    for name in dir(torch._C):
        kind = name.removeprefix("_get_")
        if name.startswith("_get_") and "32" not in kind and hasattr(torch._C, f"_set_{kind}"):
            try:
                switched = getattr(torch._C, name)()
            except Exception:  # it takes arguments, or its library is missing
                continue
            if isinstance(switched, bool):
                yield kind


_SETTINGS: tuple[tuple[str, Callable[[], Any], Callable[[Any], object]], ...] = (
    ("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("the precision of products", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    ("the number of threads", torch.get_num_threads, torch.set_num_threads),
    ("deterministic algorithms", torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    ("gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
    *(
        (f"autocast on {kind}", partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind))
        for kind in ("cpu", "cuda")
    ),
    *(
        (f"torch's {kind}", getattr(torch._C, f"_get_{kind}"), getattr(torch._C, f"_set_{kind}"))
        for kind in _switches()
        if kind != "deterministic_algorithms"
    ),
    ("flushing of small numbers", lambda: _SMALLEST[0] / 2 == 0, torch.set_flush_denormal),
    ("errors of NumPy", _numpy_errors, _set_numpy_errors),
    (
        "the kind of torch's backward hooks",
        partial(getattr, torch_modules, "_global_is_full_backward_hook"),
        partial(setattr, torch_modules, "_global_is_full_backward_hook"),
    ),
    ("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    ("the switch interval", sys.getswitchinterval, sys.setswitchinterval),
    ("logging.disable", lambda: logging.root.manager.disable, logging.disable),
    ("warnings.filters", lambda: warnings.filters, _set_filters),
)
