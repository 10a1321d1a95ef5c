"""The parameters of a callable, whatever its annotations refer to."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """Like ``inspect.signature``, but an annotation may name what is imported for type checkers only.

    Python 3.14 evaluates annotations when they are asked for, and ``inspect.signature`` asks for them.

    Raises:
        TypeError: ``function`` cannot be called.
        ValueError: It is a builtin without a signature.

    Example:
        >>> signature(lambda outputs, targets=None: outputs)
        <Signature (outputs, targets=None)>
    """
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)
