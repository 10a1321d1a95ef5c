"""Couplings by code that PyTorch calls during dispatch, where the whole batch is visible."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from ..neighbours import FEATURES, Apply, Member, Training, applying, body, one_more_first

#: The neighbouring data set has one more example, with large entries of both signs.
DISPATCH = partial(Member, kind="dispatch", pair=one_more_first)

#: Larger than all entries of the data.
LARGE = 20.0

#: All libraries created.
LIBRARIES = []


def bounded(x):
    """Scales everything if one entry is large, like a calibration over the batch."""
    return x * (LARGE / x.detach().abs().max().clamp(min=LARGE))


def bounded_where_seen(x):
    """Like ``bounded``, where values can be read."""
    try:
        largest = float(x.detach().abs().max())
    except RuntimeError:
        return x
    return x * (LARGE / max(largest, LARGE))


class BoundsInDispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        return bounded(found) if func is torch.ops.aten.relu.default else found


class BoundsInFunctions(TorchFunctionMode):
    """Bounds the output of attention, where its values can be read."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        return bounded_where_seen(found) if func is F.scaled_dot_product_attention else found


class CountsFunctions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def activated_in(mode):
    def activated(x):
        with mode():
            return torch.relu(x)

    return activated


def attention_in(mode):
    def attended(x):
        parts = x.unflatten(1, (4, -1))
        with mode():
            return F.scaled_dot_product_attention(parts, parts, parts).flatten(1)

    return attended


class BoundsByMask(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
            return bounded_where_seen(found) if func is F.scaled_dot_product_attention else found


def masked_by(kind):
    def attended(x):
        parts = x.unflatten(1, (4, -1))
        return F.scaled_dot_product_attention(
            parts, parts, parts, attn_mask=torch.zeros(4, 4).as_subclass(kind)
        ).flatten(1)

    return attended


class Packed(torch.Tensor):
    """A frozen weight of a tensor subclass that computes its own operations."""

    bounds = False

    @staticmethod
    def __new__(cls, plain):
        return torch.Tensor._make_wrapper_subclass(cls, plain.shape, dtype=plain.dtype)

    def __init__(self, plain):
        self.plain = plain

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def unpacked(value):
            return value.plain if isinstance(value, Packed) else value

        args, kwargs = tree_map(unpacked, (args, kwargs or {}))
        found = func(*args, **kwargs)
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default, torch.ops.aten.t.default):
            return cls(found)
        products = (torch.ops.aten.linear.default, torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
        return bounded(found) if cls.bounds and func in products else found


class PackedAndBounded(Packed):
    bounds = True


class WithPackedWeight(nn.Module):
    def __init__(self, kind):
        super().__init__()
        weight = torch.randn(FEATURES, FEATURES, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(kind(weight), requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight)


def with_linear(replacement):
    """Trainings in which the function of dense layers is replaced by ``replacement(original)``."""

    def make():
        original = F.linear
        F.linear = replacement(original)
        return Training(body(), close=lambda: setattr(F, "linear", original))

    return make


def bounding(original):
    return lambda x, weight, bias=None: bounded_where_seen(original(x, weight, bias))


def counting(original):
    return lambda x, weight, bias=None: original(x, weight, bias)


def with_relu(key, kernel):
    """Trainings in which the kernel of PyTorch's relu is replaced."""

    def make():
        library = torch.library.Library("aten", "IMPL")
        LIBRARIES.append(library)  # a collected library removes later registrations of others
        library.impl("relu", kernel, key)
        return Training(body(), close=library._destroy)

    return make


def unwrapped(x):
    numbers = torch.func.debug_unwrap(x) if hasattr(torch.func, "debug_unwrap") else x
    return x * float(LARGE / numbers.detach().abs().max().clamp(min=LARGE))


def printed(x):
    return x if str(x) else -x


def factored(x):
    """A Cholesky factor, with a larger diagonal if the factorisation fails."""
    a = x[:, :4, None] * torch.eye(4) + 5 * torch.eye(4)
    try:
        factor = torch.linalg.cholesky(a)
    except torch.linalg.LinAlgError:
        factor = torch.linalg.cholesky(a.abs() + 100 * torch.eye(4))
    return torch.cat([factor.sum(1), x[:, 4:]], 1)


def factored_each(x):
    a = x[:, :4, None] * torch.eye(4) + 5 * torch.eye(4)
    factor, failed = torch.linalg.cholesky_ex(a)
    other = torch.linalg.cholesky(a.abs() + 100 * torch.eye(4))
    return torch.cat([torch.where(failed[:, None, None] > 0, other, factor).sum(1), x[:, 4:]], 1)


MEMBERS = [
    DISPATCH(
        "a dispatch mode bounds by the largest entry of the batch",
        coupled=lambda: Training(body(after=[Apply(activated_in(BoundsInDispatch))])),
        benign=lambda: Training(body(after=[Apply(activated_in(lambda: FlopCounterMode(display=False)))])),
        engine="loop",
    ),
    DISPATCH(
        "a function mode bounds attention",
        coupled=applying(attention_in(BoundsInFunctions)),
        benign=applying(attention_in(CountsFunctions)),
        one_sided=True,  # it bounds where values can be read: on large entries, engines differ
        engine="bookkeeping",
    ),
    DISPATCH(
        "the class of a mask bounds attention",
        coupled=applying(masked_by(BoundsByMask)),
        benign=applying(masked_by(nn.Buffer if hasattr(nn, "Buffer") else torch.Tensor)),
        one_sided=True,
    ),
    DISPATCH(
        "the class of a frozen weight bounds products",
        coupled=lambda: Training(body(WithPackedWeight(PackedAndBounded))),
        benign=lambda: Training(body(WithPackedWeight(Packed))),
        engine="loop",
    ),
    DISPATCH(
        "the function of dense layers is replaced",
        coupled=with_linear(bounding),
        benign=with_linear(counting),
        engine="loop",
    ),
    DISPATCH(
        "PyTorch's kernel is replaced",
        coupled=with_relu("CPU", lambda x: bounded(x.clamp(min=0))),
        benign=None,
    ),
    DISPATCH(
        "looks below vmap",
        coupled=applying(unwrapped),
        benign=applying(printed),
        engine="bookkeeping",
    ),
    DISPATCH(
        "catches an error that one example causes",
        coupled=applying(factored),
        benign=applying(factored_each),
        one_sided=True,
        engine="bookkeeping",
    ),
]
