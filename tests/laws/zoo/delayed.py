"""Couplings that appear only after training has begun, or only outside the preflight checks."""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import nn

from dpmodel import Callback

from ..neighbours import Member, Training, body, layered

DELAYED = partial(Member, kind="delayed")

#: Number of calls of ``global_counter``; never reset.
CALLS = {"all": 0}

#: Nanoseconds after which ``ByTheClock`` mixes, and by which ``Wait`` advances the clock: longer than any test.
LATER = 3600 * 10**9

#: Offset of ``now`` from the machine's clock.
AHEAD = {"ns": 0}


def now():
    return time.monotonic_ns() + AHEAD["ns"]


class AfterCalls(nn.Module):
    def __init__(self, first, mixes):
        super().__init__()
        self.calls, self.first, self.mixes = 0, first, mixes

    def forward(self, x):
        self.calls += 1
        return x - x.mean(0) if self.mixes and self.calls > self.first else x


class GlobalCounter(nn.Module):
    def __init__(self, mixes):
        super().__init__()
        CALLS["all"], self.mixes = 0, mixes

    def forward(self, x):
        CALLS["all"] += 1
        return x - x.mean(0) if self.mixes and CALLS["all"] > 8 else x


class Switched(nn.Module):
    """Adds ``strength`` times the mean over the batch, or over an example's features."""

    def __init__(self, dim, strength=0.0):
        super().__init__()
        self.dim, self.strength = dim, strength

    def forward(self, x):
        return x + self.strength * x.mean(self.dim, keepdim=True) if self.strength else x


class Schedule(Callback):
    """Sets the strength of a layer by the epoch, as a schedule does."""

    def __init__(self, layer):
        self.layer = layer

    def on_train_epoch_begin(self, run):
        self.layer.strength = 5.0 * (run.epoch > 1)


class InTraining(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return x - x.mean(self.dim, keepdim=True) if self.training else x


class WithGradients(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return x - x.mean(self.dim, keepdim=True) if torch.is_grad_enabled() else x


class ByTheClock(nn.Module):
    def __init__(self, mixes):
        super().__init__()
        self.begun, self.last, self.mixes = now(), 0, mixes

    def forward(self, x):
        self.last = now() - self.begun
        return x - x.mean(0) if self.mixes and self.last >= LATER else x


class Wait(Callback):
    def on_train_step_begin(self, run):
        if run.step == 1:
            AHEAD["ns"] += LATER


def scheduled(dim):
    layer = Switched(dim)
    return Training(body(layer, bias=False), callbacks=lambda rows: [Schedule(layer)])


MEMBERS = [
    DELAYED(
        "mixes after its second call",
        coupled=layered(lambda: AfterCalls(2, True)),
        benign=layered(lambda: AfterCalls(2, False)),
    ),
    DELAYED(
        "mixes after many calls",
        coupled=layered(lambda: AfterCalls(40, True)),
        benign=layered(lambda: AfterCalls(40, False)),
        seen=False,
    ),
    DELAYED(
        "mixes when a global counter says so",
        coupled=layered(lambda: GlobalCounter(True)),
        benign=layered(lambda: GlobalCounter(False)),
        steps=12,
    ),
    DELAYED(
        "mixes from the second epoch on",
        coupled=lambda: scheduled(0),
        benign=lambda: scheduled(1),
        engine="bookkeeping",
    ),
    DELAYED(
        "mixes in training mode only",
        coupled=layered(lambda: InTraining(0)),
        benign=layered(lambda: InTraining(1)),
        engine="bookkeeping",
    ),
    DELAYED(
        "mixes where gradients are recorded",
        coupled=layered(lambda: WithGradients(0)),
        benign=layered(lambda: WithGradients(1)),
    ),
    DELAYED(
        "mixes from a point in time on",
        coupled=lambda: Training(body(ByTheClock(True), bias=False), callbacks=lambda rows: [Wait()]),
        benign=lambda: Training(body(ByTheClock(False), bias=False), callbacks=lambda rows: [Wait()]),
    ),
]
