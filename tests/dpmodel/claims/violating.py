"""A small network, and a callback that writes data into it without noise."""

import torch
from torch import nn

from dpmodel import Callback

DATA = torch.arange(12.0).reshape(3, 4)  # data that must not reach the weights


def network():
    made = nn.Sequential(nn.Linear(4, 3))
    made.register_buffer("scale", torch.ones(3))
    made.register_parameter("frozen", nn.Parameter(torch.zeros(3, 4), requires_grad=False))
    return made


def in_place(run):
    with torch.no_grad():
        run.network[0].weight.add_(DATA)


class At(Callback):
    """Does something at one hook, once, from step 2 on."""

    def __init__(self, hook, act):
        self.done = False
        setattr(self, hook, lambda run: self.once(run, act))

    def once(self, run, act):
        if run.step >= 2 and not self.done:
            self.done = True
            act(run)
