"""Couplings in kernels that see the whole batch: a shared value is mistaken for a row of an example."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from mechanisms.engines.bookkeeping.layers import LAYER_RULES, layer_rule

from ..neighbours import CLASSES, EXAMPLES, FEATURES, Member, Neighbours, Training, body, drawn
from .delayed import Schedule

KERNEL = partial(Member, kind="kernel", seen=False, engine="bookkeeping")

PLACES, WIDTH = 2, FEATURES // 2


def turned() -> Neighbours:
    """The same examples in a different order: the sum must be the same, up to rounding."""
    rows = drawn()
    return Neighbours(rows, tuple(value.roll(1, 0) for value in rows), moves=1e-2)


class Parts(nn.Module):
    """Attention within an example of two parts, by a function of the module and queries, keys and values.

    Args:
        attend: The attention that is used while ``strength`` is not 0, which a callback may set; else plain attention.
        strength: Initial value.
    """

    def __init__(self, attend, strength=0.0):
        super().__init__()
        self.attend, self.strength = attend, strength
        self.project, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(FEATURES, CLASSES)
        self.torchs = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        draws = torch.Generator().manual_seed(3)
        for name, shape in {
            "masks": (EXAMPLES, 1, PLACES, PLACES),
            "queries": (EXAMPLES, PLACES, WIDTH),
            "padding": (EXAMPLES, PLACES),
        }.items():
            self.register_buffer(name, 3 * torch.randn(shape, generator=draws))

    def forward(self, x):
        parts = self.project(x.unflatten(1, (PLACES, WIDTH)))
        attend = self.attend if self.strength else lambda self, parts: F.scaled_dot_product_attention(*[parts] * 3)
        return self.head(attend(self, parts).flatten(1))


def switched(attend):
    def make():
        network = Parts(attend)
        return Training(network, callbacks=lambda rows: [Schedule(network)])

    return make


def squeezed_keys(self, parts):
    """Keys without a batch dimension, which a batch of one broadcasts."""
    keys = parts.squeeze(0)
    return F.scaled_dot_product_attention(parts, keys, keys)


def many_masks(self, parts):
    """The mean of each example under as many masks and queries as there are examples."""
    parts = parts.unsqueeze(1)
    return F.scaled_dot_product_attention(self.queries.unsqueeze(1), parts, parts, attn_mask=self.masks).mean(0)


def many_queries(self, parts):
    return F.scaled_dot_product_attention(self.queries, parts, parts).mean(0, keepdim=True)


def padding_of_others(self, parts):
    """A mask with as many rows as there are examples, which PyTorch refuses for a batch of one."""
    return self.torchs(parts, parts, parts, key_padding_mask=self.padding, need_weights=False)[0][:1]


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(FEATURES))

    def forward(self, x):
        return x * self.weight


def ruled(rule):
    """Trainings of a layer with a user's rule."""

    def make():
        layer_rule(Scale)(rule)
        return Training(body(Scale()), close=lambda: LAYER_RULES.pop(Scale, None))

    return make


def product(call):
    return {"weight": call.inputs[0] * call.output_grad}


def guarded(call):
    """Negates the gradients if a value in the batch is large."""
    found = product(call)["weight"]
    return {"weight": -3 * found if call.inputs[0].abs().max() > 100 else found}


def centred(call):
    found = product(call)["weight"]
    return {"weight": found - found.mean(0) * (len(found) > 8)}


class Remembers:
    """Adds what it kept from the last call."""

    def __init__(self, remembers):
        self.last, self.remembers = None, remembers

    def __call__(self, call):
        found = product(call)["weight"]
        kept, self.last = self.last, found
        return {"weight": found + kept if self.remembers and kept is not None else found}


def remembering(remembers):
    return lambda: ruled(Remembers(remembers))()


MEMBERS = [
    KERNEL(
        "attends to keys without a batch dimension",
        coupled=switched(squeezed_keys),
        benign=switched(lambda self, parts: F.scaled_dot_product_attention(parts, parts[:, :1], parts[:, :1])),
    ),
    KERNEL(
        "has a mask for every row",
        pair=turned,
        coupled=switched(many_masks),
        benign=switched(
            lambda self, parts: F.scaled_dot_product_attention(parts, parts, parts, attn_mask=self.masks[:1, 0])
        ),
    ),
    KERNEL(
        "has queries for every row",
        pair=turned,
        coupled=switched(many_queries),
        benign=switched(
            lambda self, parts: F.scaled_dot_product_attention(
                self.queries[:1].expand(len(parts), -1, -1), parts, parts
            )
        ),
    ),
    KERNEL(
        "has a padding mask for every row",
        pair=turned,
        coupled=lambda: Training(Parts(padding_of_others, 1.0)),
        benign=switched(
            lambda self, parts: self.torchs(
                parts, parts, parts, key_padding_mask=parts.sum(-1) > 9, need_weights=False
            )[0]
        ),
    ),
    KERNEL("a layer rule reads a value of the batch", coupled=ruled(guarded), benign=ruled(product)),
    KERNEL("a layer rule centres over the batch", coupled=ruled(centred), benign=ruled(product)),
    KERNEL("a layer rule remembers", coupled=remembering(True), benign=remembering(False)),
]
