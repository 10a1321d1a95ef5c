"""Modules whose forward pass is replaced, during recording, by an equivalent composition of layers with rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn


class Tape(Protocol):
    """Gives a rewritten forward pass access to its module's parameters, and records their use."""

    def linear(self, x: Tensor, weight: str, bias: str | None = None) -> Tensor:
        """``x W' + b`` with the module's parameters of these names, recorded."""

    def embedding(self, tokens: Tensor, weight: str, padding_idx: int | None = None) -> Tensor:
        """Rows of the module's table ``weight``, recorded."""


@dataclass(frozen=True)
class Rewrite:
    """A forward pass made of recorded layers.

    Args:
        forward: ``forward(module, tape, *args, **kwargs)`` returns the same as ``module(*args, **kwargs)``.
        takes: Whether a module with these settings can be rewritten; all others run example by example.
    """

    forward: Callable[..., Any]
    takes: Callable[[Any], bool]


#: Rewrites by exact module type.
REWRITES: dict[type[nn.Module], Rewrite] = {}

Fn = TypeVar("Fn", bound=Callable[..., Any])


def rewrite(*types: type[nn.Module], takes: Callable[[Any], bool] = lambda module: True) -> Callable[[Fn], Fn]:
    """Decorator that registers ``forward(module, tape, *args, **kwargs)`` for modules of exactly these types."""

    def file(function: Fn) -> Fn:
        for module_type in types:
            REWRITES[module_type] = Rewrite(function, takes)
        return function

    return file


def rewrite_for(module: nn.Module) -> Rewrite | None:
    """The rewrite of this module; None if it has none."""
    found = REWRITES.get(type(module))
    return found if found is not None and found.takes(module) else None
