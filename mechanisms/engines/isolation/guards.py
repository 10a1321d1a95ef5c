"""Refuses what user code must not do in an isolated pass, at the point where it does it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import wraps
from random import Random
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._functorch import autograd_function, eager_transforms
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mechanisms.engines.isolation.originals import replaced_function, replaced_kernel
from mechanisms.engines.isolation.patches import WAYS, Patches
from mechanisms.engines.isolation.remains import Remains, is_remaining, remaining
from mechanisms.engines.isolation.shared_draws import current_draws
from monitors.errors import DPModelError, UnprotectedUpdateError, UnsupportedModuleError

_functorch: Any = torch._C._functorch
_REGISTER_HOOK: Any = torch.Tensor.register_hook
_GRAD_FN: Any = torch._C.TensorBase.grad_fn
_VMAP_INFO: Any = autograd_function.VmapInfo
_SHOWING: Any = (torch.Tensor.__repr__, torch.Tensor.__format__)
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack

#: Packages whose code may see a whole batch: what it does with the rows is known.
TRUSTED = ("torch.", "mechanisms.")

#: Packages that read the autograd graph for internal purposes only.
_COMPILERS = ("torch._dynamo.", "torch._subclasses.", "torch._functorch.", "torch.fx.")

#: Namespaces whose operators are written in C++ and keep no state.
_TRUSTED_OPERATORS = frozenset({"aten", "prims", "prim", "quantized", "mkldnn", "torchvision", "higher_order"})

#: Hooks on saved tensors receive the tensors of the whole batch.
NO_HOOKS = "saved tensor hooks (activation checkpointing, for instance) would receive the whole batch"

#: Parts of PyTorch's messages about operations that a vectorised function must not use, for any values.
SIGNS = ("vmap", "Batching rule", "functorch", "BatchedTensor", "doesn't have storage", "broadcast shape", NO_HOOKS)

#: Types of arguments that need no check.
_PLAIN = frozenset({Tensor, nn.Parameter, bool, int, float, str, type(None), torch.Size, torch.dtype, torch.device})

#: Functions that access the memory of a tensor, which is that of the whole batch.
_REREADING = frozenset(
    getattr(owner, name)
    for owner in (torch, Tensor)
    for name in ("as_strided", "as_strided_", "as_strided_copy", "as_strided_scatter", "resize_", "resize_as_", "set_")
    if hasattr(owner, name)
)
_REREADING_OPERATORS = frozenset(f"aten::{func.__name__}" for func in _REREADING)

#: Device types that autocast supports.
AUTOCAST_DEVICES = tuple(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu")))

#: Errors of functions of torch that may depend on values.
_FAILURES = (RuntimeError, ValueError, IndexError, ArithmeticError)

#: Functions whose errors depend only on shapes; networks often try them.
_BY_SHAPE = frozenset({Tensor.view, Tensor.reshape, torch.reshape})

_here = threading.local()


class PassGuard(TorchFunctionMode):
    """While active, refuses code that would see the whole batch or connect examples through random numbers.

    At each function of torch, the guard refuses: a generator that is seeded or passed explicitly; a mode below vmap; a
    tensor with a custom ``__torch_dispatch__``, or one from an earlier pass; an operator without a batching rule
    (PyTorch would show it one example after the other). It also refuses a network that catches an error of torch,
    because a failure for one example then decides for all. If the network catches a refusal, it is raised again at the
    end.

    Args:
        device: Device of the examples.
        whole: Whether the guard surrounds a whole pass. If not, tensors may remain afterwards: the results of a
            function.

    Raises:
        UnsupportedModuleError: Any of these, or code of PyTorch has been replaced.
    """

    def __init__(self, device: torch.device | None = None, *, whole: bool = True) -> None:
        super().__init__()
        self._whole = whole
        self._generators = _generators_on(device)
        self._seed, self._modes, self._below = 0, 0, 0
        self._own: list[torch.Generator] = []
        self._states: list[tuple[Tensor, Tensor]] = []
        self._around = ExitStack()
        self._refusal: DPModelError | None = None

    def __enter__(self) -> PassGuard:
        """Seed the generators, with the seed that engine ``loop`` would use for a single example."""
        _refuse_replaced()
        inherited = _guards()[-1] if _guards() else None
        self._own = [one for one in self._generators if inherited is None or one not in inherited._generators]
        before = [generator.get_state() for generator in self._own]
        self._seed = inherited._seed if inherited else _new_seed()
        for generator in self._own:
            generator.manual_seed(self._seed)
        self._states = list(zip(before, (generator.get_state() for generator in self._own), strict=True))
        self._modes, self._below = _dispatch_modes(), _function_modes()
        Patches.install()
        _guards().append(self)
        self._around.enter_context(_uncompiled())
        self._around.enter_context(_same_autocast())
        if self._whole:
            self._around.enter_context(Remains())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        """See the class."""
        self._check()
        left = _function_modes() - self._below - 1
        for _ in range(left):  # modes that the network entered but did not leave
            torch._C._pop_torch_function_stack()
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        while _dispatch_modes() > self._modes:
            torch._C._pop_torch_dispatch_stack(None)
        self._around.close()
        _guards().remove(self)
        Patches.remove()
        self._leave_no_trace()
        if left > 0:
            self._refusal = _refusal("the network leaves a TorchFunctionMode active, which would see sums and norms")
        error = exception[1] if exception else None
        for outer in _guards()[-1:]:  # raises it again if the code in between catches it
            outer._refusal = outer._refusal or self._refusal
        if self._refusal is not None and (error is None or isinstance(error, DPModelError)):
            raise self._refusal from error

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` if it is allowed."""
        del types
        kwargs = kwargs or {}
        if _dispatch_modes() > self._modes or self._generators[0].initial_seed() != self._seed:
            self.require_unchanged()
        if kwargs or remaining() or not _PLAIN.issuperset(map(type, args)):
            self.require_plain((args, kwargs))
            if kwargs.get("generator") not in (None, *self._generators):
                self.refuse(
                    "a generator is passed explicitly, so the numbers that an example draws would depend on its place "
                    "in the batch"
                )
        if type(func) in (OpOverload, OpOverloadPacket):
            self._require_trusted(func, args, kwargs)
        elif type(func) is FunctionType and not _is_torchs(func):
            self.refuse(f"{func.__qualname__} overrides functions of torch, and its calls cannot be checked")
        if func in _REREADING and any(map(_is_wrapped, args)):
            self.refuse(f"{func.__name__} accesses memory directly, including the rows of other examples")
        if func in _SHOWING and _functorch.is_functorch_wrapped_tensor(args[0]):
            return f"<tensor of one example, shape {tuple(args[0].shape)}; values hidden>"
        try:
            return func(*args, **kwargs)
        except _FAILURES as error:
            if func not in _BY_SHAPE:
                self.failed(getattr(func, "__name__", str(func)), error)
            raise

    def refuse(self, what: str) -> NoReturn:
        """Raise a refusal now, and again at the end of the pass.

        Raises:
            UnsupportedModuleError: Always.
        """
        refusal = self._refusal = _refusal(what)
        raise refusal

    def require_plain(self, values: Any) -> None:
        """Refuse tensors among ``values`` whose class would receive batch tensors below vmap."""
        for value in tree_leaves(values):
            kind = type(value)
            if is_remaining(value):
                self.refuse("the network uses a tensor from an earlier pass, whose rows belong to other examples")
            if kind in _PLAIN:
                continue
            if callable(value) and not _is_torchs(value):
                self.refuse("a function of torch receives a Python function, whose calls cannot be checked")
            if isinstance(value, Tensor) and (method := _override(kind)):
                self.refuse(f"a tensor of type {kind.__name__} has a custom {method}, whose calls cannot be checked")

    def _leave_no_trace(self) -> None:
        """Restore the generators if nothing was drawn from them."""
        pairs = zip(self._own, self._states, strict=True)
        if all(torch.equal(generator.get_state(), seeded) for generator, (_, seeded) in pairs):
            for generator, (before, _) in zip(self._own, self._states, strict=True):
                generator.set_state(before)
        elif (draws := current_draws()) is not None:
            draws.note()

    def _check(self) -> None:
        """Check once more, as at each function of torch."""
        try:
            self.require_unchanged()
        except UnsupportedModuleError:
            return  # the refusal is recorded; __exit__ raises it

    def require_unchanged(self) -> None:
        """Refuse a mode below vmap, and generators whose seed has changed."""
        if _dispatch_modes() > self._modes:
            self.refuse("a TorchDispatchMode that is entered in the forward pass would see the whole batch")
        if any(generator.initial_seed() != self._seed for generator in self._generators):
            self.refuse(
                "the random generator is seeded in the forward pass, so the numbers that an example draws would depend "
                "on its place in the batch"
            )

    def _require_trusted(self, func: Any, args: Any, kwargs: Any) -> None:
        """Refuse operators that are not PyTorch's: vectorised, they see the batch, or one example after the other."""
        packet = func.overloadpacket if isinstance(func, OpOverload) else func
        name = packet._qualified_op_name
        if not any(map(_is_wrapped, tree_leaves((args, kwargs)))):
            return
        if name in _REREADING_OPERATORS:
            self.refuse(f"{name} accesses memory directly, including the rows of other examples")
        if name.partition("::")[0] in _TRUSTED_OPERATORS:
            return
        overloads = [func] if isinstance(func, OpOverload) else [getattr(packet, key) for key in packet.overloads()]
        if any(one.has_kernel_for_dispatch_key(torch._C.DispatchKey.FuncTorchBatched) for one in overloads):
            self.refuse(_own_rule(f"operator {name}"))
        self.refuse(
            f"operator {name} has no vmap rule of PyTorch: it would see the values of one example after the other, and "
            "could keep information about them"
        )

    def failed(self, name: str, error: Exception) -> None:
        """Note an error of a function of torch: refuse at the end of the pass if the network catches it."""
        reason = " ".join(str(error).split())
        if self._refusal is None and not any(sign in reason for sign in SIGNS):
            self._refusal = UnprotectedUpdateError(
                f"the network catches an error of torch ({name}: {reason:.100}), so a failure for one example decides "
                "for all; use a function that reports failures instead (torch.linalg.cholesky_ex), or engine='loop'"
            )


def seed_as_pass(device: torch.device | None = None) -> None:
    """Seed the generators as an isolated pass on ``device`` would, so that one example draws the same numbers."""
    seed = _new_seed()
    for generator in _generators_on(device):
        generator.manual_seed(seed)


def _generators_on(device: torch.device | None) -> list[torch.Generator]:
    if device is None or device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return [torch.default_generator]  # the generator of a GPU cannot be read while its kernels are recorded
    return [torch.default_generator, torch.cuda.default_generators[device.index or 0]]


def _new_seed() -> int:
    vectorised = _functorch.peek_interpreter_stack() is not None
    with temporarily_pop_interpreter_stack() if vectorised else nullcontext():
        return Random(int(torch.randint(2**63 - 1, (), device="cpu"))).getrandbits(63)


def _uncompiled() -> AbstractContextManager[Any]:
    """Run compiled functions eagerly, so that their calls can be checked."""
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()


def require_plain(values: Iterable[Any]) -> None:
    """In an isolated pass, refuse tensors whose class has a custom ``__torch_dispatch__``; see ``PassGuard``."""
    for guard in _guards()[-1:]:
        if remaining() or not _PLAIN.issuperset(map(type, values)):
            guard.require_plain(list(values))


@contextmanager
def guarded_batch() -> Iterator[None]:
    """Surround work on the rows of all examples in an isolated pass: modes do not see it, and errors are noted."""
    guard = _guards()[-1] if _guards() else None
    if guard is not None:
        guard.require_unchanged()
    with torch._C.DisableTorchFunction():
        try:
            yield
        except _FAILURES as error:
            if guard is not None and not isinstance(error, UnsupportedModuleError):
                guard.failed("a layer", error)
            raise


def _refuse_replaced() -> None:
    what = replaced_function() or replaced_kernel()
    if what is not None:
        raise _refusal(f"{what} has been replaced by code that is not PyTorch's, which would see the whole batch")


def _refusal(what: str) -> UnsupportedModuleError:
    return UnsupportedModuleError(f"the examples of a batch cannot be isolated: {what}; use engine='loop'")


def is_guarded() -> bool:
    """Whether an isolated pass is active in this thread."""
    return bool(_guards())


def _guards() -> list[PassGuard]:
    """The active guards of this thread, innermost last."""
    found: list[PassGuard] = _here.__dict__.setdefault("guards", [])
    return found


def _refuse(what: str) -> None:
    """Refuse inside an isolated pass; do nothing elsewhere."""
    for guard in _guards()[-1:]:
        guard.refuse(what)


def _is_wrapped(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(_functorch.is_functorch_wrapped_tensor(value))


def _override(kind: type) -> str | None:
    """Name of a method by which a tensor class intercepts functions of torch, if it is not PyTorch's; else None."""
    for method in ("__torch_dispatch__", "__torch_function__"):
        owner = next(base for base in kind.__mro__ if method in vars(base))
        if not f"{owner.__module__}.".startswith(TRUSTED):
            return method
    return None


def _is_torchs(value: Any) -> bool:
    """Whether a callable, a function or an object of some class, was written by PyTorch."""
    if isinstance(value, type | BuiltinFunctionType | OpOverload | OpOverloadPacket):
        return True
    code = value.__func__ if isinstance(value, MethodType) else value
    # The module of the code: functools.wraps copies the name of another one.
    home = code.__globals__.get("__name__") if isinstance(code, FunctionType) else type(code).__module__
    return f"{home}.".startswith(TRUSTED)


@contextmanager
def _same_autocast() -> Iterator[None]:
    """Restore the autocast settings afterwards, whatever the network changes."""
    before = [(device, torch.is_autocast_enabled(device)) for device in AUTOCAST_DEVICES]
    try:
        yield
    finally:
        for device, enabled in before:
            if torch.is_autocast_enabled(device) != enabled:
                torch.set_autocast_enabled(device, enabled)


def _guarded_state(original: Callable[..., Any]) -> Callable[..., Any]:
    """Check for new seeds before a call that would restore the generator and hide them."""

    @wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        for guard in _guards()[-1:]:
            guard.require_unchanged()
        return original(*args, **kwargs)

    return guarded


def _guarded_hook(tensor: Tensor, hook: Callable[..., Any]) -> Any:
    if _is_wrapped(tensor):
        _refuse("a hook on the gradient of a tensor would receive the whole batch")
    return _REGISTER_HOOK(tensor, hook)


def _guarded_graph(tensor: Tensor) -> Any:
    if _is_wrapped(tensor) and not sys._getframe(1).f_globals.get("__name__", "").startswith(_COMPILERS):
        _refuse("grad_fn, the node of a tensor in the autograd graph, would give access to the whole batch")
    return _GRAD_FN.__get__(tensor)


def _guarded_info(**known: Any) -> Any:
    """``VmapInfo``, which PyTorch creates just before it passes the whole batch to a vmap rule, however called."""
    names = sys._getframe(1).f_locals
    op = names.get("op", names.get("autograd_function"))
    if isinstance(op, (OpOverload, OpOverloadPacket)):
        _refuse(_own_rule(f"operator {op.name() if isinstance(op, OpOverload) else op._qualified_op_name}"))
    elif not getattr(op, "__module__", "").startswith(TRUSTED):
        _refuse(_own_rule(f"autograd function {getattr(op, '__name__', op)}"))
    return _VMAP_INFO(**known)


def _for_torch_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """Close a function that unwraps batched tensors to all callers but PyTorch's own code."""

    def guarded(*args: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if not caller.startswith(TRUSTED) or caller in _FOR_USERS:
            _refuse(f"{function.__name__} would reveal the values of the whole batch")
        return function(*args)

    return guarded


#: Modules of PyTorch that unwrap tensors on behalf of the user.
_FOR_USERS = (eager_transforms.__name__, "torch._tensor_str")


def _own_rule(what: str) -> str:
    return (
        f"{what} has a custom vmap rule, which receives the whole batch, so its effect on the examples is unknown; "
        "remove the rule (an autograd function may set generate_vmap_rule = True)"
    )


_UNWRAPPING = ("get_unwrapped", "_unwrap_batched", "_remove_batch_dim", "pop_dynamic_layer_stack")

WAYS += [
    (torch.Tensor, "register_hook", _guarded_hook, _REGISTER_HOOK),
    (torch.Tensor, "grad_fn", property(_guarded_graph), None),
    (autograd_function, "VmapInfo", _guarded_info, _VMAP_INFO),
    *(
        (owner, "set_rng_state", _guarded_state(torch.random.set_rng_state), torch.random.set_rng_state)
        for owner in (torch, torch.random)
    ),
    *(
        (_functorch, name, _for_torch_alone(getattr(_functorch, name)), getattr(_functorch, name))
        for name in _UNWRAPPING
    ),
]
if hasattr(eager_transforms, "get_unwrapped"):
    _original: Any = eager_transforms.get_unwrapped
    WAYS.append((eager_transforms, "get_unwrapped", _for_torch_alone(_original), _original))
