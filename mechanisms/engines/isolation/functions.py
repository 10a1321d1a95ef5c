"""Guards the code of users' autograd functions in an isolated pass, as that of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from torch import Tensor
from torch._functorch import autograd_function
from torch.autograd import Function
from torch.utils._pytree import tree_leaves

from mechanisms.engines.isolation.guards import TRUSTED, PassGuard, is_guarded
from mechanisms.engines.isolation.patches import WAYS

#: Methods of an autograd function that users implement.
_WRITTEN = ("forward", "setup_context", "backward", "jvp")

#: Marks a guarded copy.
_MARK = "__guarded__"

_Operator: Any = type(autograd_function.custom_function_call)
_CALL: Any = vars(_Operator)["__call__"]


def _guarded_call(operator: Any, function: type[Function], *args: Any, **kwargs: Any) -> Any:
    """Call a guarded copy of the function: PyTorch turns function modes off while it runs the function's code."""
    if is_guarded() and not function.__module__.startswith(TRUSTED) and _MARK not in vars(function):
        function = _copy(function)
    return _CALL(operator, function, *args, **kwargs)


WAYS.append((_Operator, "__call__", _guarded_call, _CALL))


def _copy(cls: type[Function]) -> type[Function]:
    """A subclass whose code runs under a separate guard, in the forward and in the backward pass."""
    code = {name: getattr(cls, name) for name in _WRITTEN if getattr(cls, name) is not getattr(Function, name)}
    methods: Mapping[str, Any] = {name: staticmethod(_guarded(function)) for name, function in code.items()}
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, _MARK: True}
    return type(cls.__name__, (cls,), {**methods, **names})


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        device = next((value.device for value in tree_leaves(args) if isinstance(value, Tensor)), None)
        with PassGuard(device, whole=False):
            return function(*args, **kwargs)

    return run
