"""Modules whose forward pass is replaced, while gradients are recorded, by an equal one made of layers with rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn


class Tape(Protocol):
    """What a rewritten forward pass calls for its parameters."""

    def linear(self, x: Tensor, weight: str, bias: str | None = None) -> Tensor:
        """``x W' + b`` with the module's parameters of these names, watched."""

    def embedding(self, tokens: Tensor, weight: str, padding_idx: int | None = None) -> Tensor:
        """Rows of the module's table ``weight``, watched."""


@dataclass(frozen=True)
class Rewrite:
    """A forward pass made of watched layers.

    Args:
        forward: ``forward(module, tape, *args, **kwargs)`` gives what ``module(*args, **kwargs)`` gives.
        takes: Whether a module, as it is set up, can be rewritten; the others run example by example.
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
    """The rewrite of this module, if it has one."""
    found = REWRITES.get(type(module))
    return found if found is not None and found.takes(module) else None
