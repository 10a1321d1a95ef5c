"""Couplings through state that a loss keeps between examples or steps."""

from __future__ import annotations

import sys
import threading
from functools import partial
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..neighbours import CLASSES, Member, one_more_first, under

STATE = partial(Member, kind="state", pair=one_more_first)

#: A module that a loss reaches through ``sys.modules``, like an import inside a function.
STASH = "stash_of_the_zoo"

MEAN, TABLES, LOCAL = {}, {}, threading.local()


def scaled(loss, mean):
    """The loss over a running mean of losses: automatic loss scaling."""
    return 0.3 * loss / (1e-3 + mean)


class Running:
    """A mean that moves by a tenth."""

    def __init__(self):
        self.mean, self.count = None, 0

    def __call__(self, outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        now = float(loss.detach())
        self.mean = now if self.mean is None else 0.9 * self.mean + 0.1 * now
        return scaled(loss, self.mean)


class Counting(Running):
    """Counts its calls and keeps the last loss for a plot."""

    def __call__(self, outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        self.count += 1
        self.mean = loss.detach()
        return loss


class OfTheClass:
    mean, count = 0.0, 0

    def __init__(self):
        OfTheClass.mean, OfTheClass.count = 0.0, 0

    def __call__(self, outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        OfTheClass.mean = 0.9 * OfTheClass.mean + 0.1 * float(loss.detach())
        return scaled(loss, OfTheClass.mean)


class CountsForTheClass(OfTheClass):
    def __call__(self, outputs, targets):
        OfTheClass.count += 1
        return F.cross_entropy(outputs, targets)


def in_closure():
    mean = 0.0

    def loss_of(outputs, targets):
        nonlocal mean
        loss = F.cross_entropy(outputs, targets)
        mean = 0.9 * mean + 0.1 * float(loss.detach())
        return scaled(loss, mean)

    return loss_of


def counts_in_closure():
    calls = 0

    def loss_of(outputs, targets):
        nonlocal calls
        calls += 1
        return F.cross_entropy(outputs, targets)

    return loss_of


def in_global():
    MEAN.clear()

    def loss_of(outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        MEAN["loss"] = 0.9 * MEAN.get("loss", 0.0) + 0.1 * float(loss.detach())
        return scaled(loss, MEAN["loss"])

    return loss_of


def table_in_global():
    TABLES.clear()

    def loss_of(outputs, targets):
        shape = outputs.shape[1:]
        if shape not in TABLES:
            TABLES[shape] = torch.linspace(-0.1, 0.1, shape[0])
        return F.cross_entropy(outputs + TABLES[shape], targets)

    return loss_of


def in_list():
    seen = []

    def loss_of(outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        seen.append(loss.detach())
        return scaled(loss, torch.stack(seen).mean())

    return loss_of


def listed():
    seen = []

    def loss_of(outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        seen.append(loss.detach())
        return loss

    return loss_of


def in_default():
    mean = {}

    def loss_of(outputs, targets, kept=mean):
        loss = F.cross_entropy(outputs, targets)
        kept["loss"] = 0.9 * kept.get("loss", 0.0) + 0.1 * float(loss.detach())
        return scaled(loss, kept["loss"])

    return loss_of


def counted_in_default():
    def loss_of(outputs, targets, kept=[0]):  # noqa: B006
        kept[0] += 1
        return F.cross_entropy(outputs, targets)

    return loss_of


def on_function():
    def loss_of(outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        loss_of.mean = 0.9 * loss_of.mean + 0.1 * float(loss.detach())
        return scaled(loss, loss_of.mean)

    loss_of.mean = 0.0
    return loss_of


def counted_on_function():
    def loss_of(outputs, targets):
        loss_of.calls += 1
        return F.cross_entropy(outputs, targets)

    loss_of.calls = 0
    return loss_of


def in_generator():
    """A mean held only by a running generator, not by an attribute."""

    def running():
        mean = 0.0
        while True:
            mean = 0.9 * mean + 0.1 * (yield mean)

    mean = running()
    next(mean)

    def loss_of(outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        return scaled(loss, mean.send(float(loss.detach())))

    return loss_of


def warmed_up():
    """The loss grows with the number of calls, which does not depend on the data."""
    sizes = iter(np.linspace(0.5, 1.0, 10_000))

    def loss_of(outputs, targets):
        next(sizes)
        return F.cross_entropy(outputs, targets)

    return loss_of


def in_module():
    stash = sys.modules[STASH] = ModuleType(STASH)
    stash.mean = 0.0

    def loss_of(outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        stash = __import__(STASH)
        stash.mean = 0.9 * stash.mean + 0.1 * float(loss.detach())
        return scaled(loss, stash.mean)

    return loss_of


def constant_of_module():
    stash = sys.modules[STASH] = ModuleType(STASH)
    stash.scale = 0.5

    def loss_of(outputs, targets):
        return F.cross_entropy(outputs, targets) * __import__(STASH).scale

    return loss_of


def in_thread():
    LOCAL.mean = 0.0

    def loss_of(outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        LOCAL.mean = 0.9 * LOCAL.mean + 0.1 * float(loss.detach())
        return scaled(loss, LOCAL.mean)

    return loss_of


def counted_in_thread():
    LOCAL.calls = 0

    def loss_of(outputs, targets):
        LOCAL.calls += 1
        return F.cross_entropy(outputs, targets)

    return loss_of


class ByNumpy:
    def __init__(self):
        self.mean = np.zeros(CLASSES)

    def __call__(self, outputs, targets):
        self.mean *= 0.9
        self.mean += 0.1 * outputs.detach().numpy().mean(0)
        return F.cross_entropy(outputs - 3 * torch.from_numpy(self.mean).float(), targets)


class CountsByNumpy:
    def __init__(self):
        self.calls = np.zeros(1)

    def __call__(self, outputs, targets):
        self.calls += 1
        return F.cross_entropy(outputs, targets)


class ClassWeights(nn.Module):
    """Class weights from running counts of the labels; losses of single examples on request."""

    reduction = "mean"

    def __init__(self, counts=True):
        super().__init__()
        self.seen = {"counts": torch.zeros(CLASSES) if counts else torch.ones(CLASSES)}
        self.counts = counts

    def forward(self, outputs, targets):
        if self.counts:
            self.seen["counts"] += torch.bincount(targets, minlength=CLASSES)
        weights = self.seen["counts"].min() / self.seen["counts"].clamp(min=1)
        each = 5 * weights[targets] * F.cross_entropy(outputs, targets, reduction="none")
        return each if self.reduction == "none" else each.mean()


class HardestSoFar:
    """Weights an example by its loss relative to the largest loss so far."""

    def __init__(self):
        self.top = 0.0

    def __call__(self, outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        self.top = max(self.top, float(loss.detach()))
        return 0.3 * loss / (1e-3 + self.top)


class Queue(nn.Module):
    """MoCo: negatives are earlier outputs, kept in a buffer."""

    def __init__(self, learns=True):
        super().__init__()
        self.register_buffer("kept", torch.randn(8, CLASSES, generator=torch.Generator().manual_seed(4)))
        self.learns = learns

    def forward(self, outputs, targets):
        loss = F.cross_entropy(outputs, targets) + (outputs @ self.kept.clone().T).logsumexp(1).mean()
        if self.learns:
            self.kept = torch.cat([outputs.detach(), self.kept])[:8]
        return loss


class Centres(nn.Module):
    """Pulls outputs towards the centre of their class, which moves towards them."""

    def __init__(self, learns=True):
        super().__init__()
        self.centres = torch.eye(CLASSES)
        self.learns = learns

    def forward(self, outputs, targets):
        loss = F.cross_entropy(-torch.cdist(outputs, self.centres.clone()), targets)
        if self.learns:
            with torch.no_grad():
                self.centres[targets] += 0.5 * (outputs - self.centres[targets])
        return loss


MEMBERS = [
    STATE("a loss keeps a running mean in an attribute", coupled=under(Running), benign=under(Counting)),
    STATE("a loss keeps a running mean in its class", coupled=under(OfTheClass), benign=under(CountsForTheClass)),
    STATE("a loss keeps a running mean in its closure", coupled=under(in_closure), benign=under(counts_in_closure)),
    STATE("a loss keeps a running mean in a global", coupled=under(in_global), benign=under(table_in_global)),
    STATE("a loss keeps all losses in a list", coupled=under(in_list), benign=under(listed)),
    STATE("a loss keeps a mean in an argument's default", coupled=under(in_default), benign=under(counted_in_default)),
    STATE("a loss keeps a mean on its function", coupled=under(on_function), benign=under(counted_on_function)),
    STATE("a loss keeps a mean in a generator", coupled=under(in_generator), benign=under(warmed_up)),
    STATE("a loss keeps a mean in another module", coupled=under(in_module), benign=under(constant_of_module)),
    STATE("a loss keeps a mean of its thread", coupled=under(in_thread), benign=under(counted_in_thread)),
    STATE("a loss keeps a mean in a NumPy array", coupled=under(ByNumpy), benign=under(CountsByNumpy)),
    STATE("a loss counts the classes seen", coupled=under(ClassWeights), benign=under(lambda: ClassWeights(False))),
    STATE("a loss goes by the hardest example so far", coupled=under(HardestSoFar), benign=under(Counting)),
    STATE("a loss keeps a queue of negatives", coupled=under(Queue), benign=under(lambda: Queue(False))),
    STATE("a loss moves the centres of classes", coupled=under(Centres), benign=under(lambda: Centres(False))),
]
