"""Couplings through callbacks that hold the data, or read non-private values of a training run."""

from __future__ import annotations

from functools import partial

from torch import nn

from dpmodel import Callback

from ..neighbours import CLASSES, FEATURES, Member, Training, body

CALLBACK = partial(Member, kind="callback", seen=False)


class Writes(Callback):
    """Changes the network by the mean of the data, at some point of the training."""

    def __init__(self, network, write, hook, mean):
        self.network, self.write, self.mean = network, write, mean
        setattr(self, hook, lambda run: self.write(self.network, self.mean))


def writing(write, hook="on_train_step_end", network=body):
    def make():
        made = network()
        return Training(made, callbacks=lambda rows: [Writes(made, write, hook, rows[0].mean(0))])

    return make


def reading():
    """A callback that only reads."""
    kept = []
    return writing(lambda network, mean: kept.append(float(network[0].weight.detach().norm())))


def to_weights(network, mean):
    network[0].weight.data += mean


def by_numpy(network, mean):
    network[0].weight.detach().numpy()[:] += mean.numpy()


def to_frozen(network, mean):
    network[0].weight.data += mean


def swaps(network, mean):
    layer = nn.Linear(FEATURES, 16)
    layer.load_state_dict(network[0].state_dict())
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] - mean,))
    network[0] = layer


def frozen_first():
    network = body()
    network[0].requires_grad_(False)
    return network


class GoesByLoss(Callback):
    """Scales the network's outputs by the training loss."""

    def __init__(self, layer):
        self.layer = layer

    def on_train_step_end(self, run):
        self.layer.scale = 1.0 / run.loss


class Scaled(nn.Module):
    scale = 1.0

    def forward(self, x):
        return x * self.scale


def by_loss(callback):
    layer = Scaled()
    return Training(
        nn.Sequential(layer, nn.Linear(FEATURES, CLASSES, bias=False)), callbacks=lambda rows: [callback(layer)]
    )


class GoesByStep(GoesByLoss):
    def on_train_step_end(self, run):
        self.layer.scale = 1.0 / (1 + run.step)


MEMBERS = [
    CALLBACK("writes to the weights' data", coupled=writing(to_weights), benign=reading()),
    CALLBACK("writes to the weights through NumPy", coupled=writing(by_numpy), benign=reading()),
    CALLBACK("writes to frozen weights", coupled=writing(to_frozen, network=frozen_first), benign=reading()),
    CALLBACK("writes when the training has ended", coupled=writing(to_weights, "on_train_end"), benign=reading()),
    CALLBACK(
        "writes through NumPy when the training has ended", coupled=writing(by_numpy, "on_train_end"), benign=None
    ),
    CALLBACK("puts another layer in place", coupled=writing(swaps), benign=reading()),
    CALLBACK(
        "follows the training loss",
        coupled=lambda: by_loss(GoesByLoss),
        benign=lambda: by_loss(GoesByStep),
        accepts=frozenset({"exact", "refused", "voided", "noted"}),
        seen=True,
    ),
]
