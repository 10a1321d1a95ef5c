"""Couplings through things outside the objects of a network and a loss: files, the environment, modules."""

from __future__ import annotations

import logging
import os
import tempfile
from functools import partial

import torch
import torch.nn.functional as F

from ..neighbours import Member, Training, body, one_more_first
from .state import scaled

OUTSIDE = partial(Member, kind="outside", pair=one_more_first, engine="loop")

#: A file, an environment variable, a global name and an attribute of torch, none of which exists beforehand.
FILE, NAME = os.path.join(tempfile.gettempdir(), f"stash_of_the_zoo_{os.getpid()}"), "STASH_OF_THE_ZOO"


def read_file():
    if not os.path.exists(FILE):
        return 0.0
    with open(FILE) as file:
        return float(file.read())


def write_file(mean):
    with open(FILE, "w") as file:
        file.write(str(mean))


def remove_file():
    if os.path.exists(FILE):
        os.remove(FILE)


def elsewhere(read, write, remove, factor=1.0):
    """A loss over a mean that functions read and write; with ``factor`` 0 it does not depend on the data."""

    def make():
        remove()

        def loss_of(outputs, targets):
            loss = F.cross_entropy(outputs, targets)
            mean = 0.9 * read() + 0.1 * (factor * float(loss.detach()) + 1.0 - factor)
            write(mean)
            return scaled(loss, mean) if factor else 0.3 * loss

        return Training(body(), loss_of, close=remove)

    return make


def reading_elsewhere(read):
    def make():
        def loss_of(outputs, targets):
            return F.cross_entropy(outputs, targets) * (1.0 + read()) * (float(outputs.detach().sum()) < 1e9)

        return Training(body(), loss_of)

    return make


def logging_losses():
    """Writes to a file that was opened earlier."""
    handler = logging.FileHandler(os.devnull)
    logger = logging.Logger("zoo")
    logger.addHandler(handler)

    def loss_of(outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        logger.warning("a loss of %g", float(loss.detach()))
        return loss

    return Training(body(), loss_of, close=handler.close)


ENVIRONMENT = (
    lambda: float(os.environ.get(NAME, 0.0)),
    lambda mean: os.environ.update({NAME: str(mean)}),
    lambda: os.environ.pop(NAME, None),
)
GLOBAL = (
    lambda: globals().get(NAME, 0.0),
    lambda mean: globals().update({NAME: mean}),
    lambda: globals().pop(NAME, None),
)
OF_TORCH = (
    lambda: getattr(torch, NAME, 0.0),
    lambda mean: setattr(torch, NAME, mean),
    lambda: vars(torch).pop(NAME, None),
)


MEMBERS = [
    OUTSIDE(
        "a loss keeps a mean in a file",
        coupled=elsewhere(read_file, write_file, remove_file),
        benign=logging_losses,
    ),
    OUTSIDE(
        "a loss keeps a mean in the environment",
        coupled=elsewhere(*ENVIRONMENT),
        benign=reading_elsewhere(ENVIRONMENT[0]),
    ),
    OUTSIDE(
        "a loss keeps a mean under a new global name",
        coupled=elsewhere(*GLOBAL),
        benign=elsewhere(*GLOBAL, factor=0.0),
    ),
    OUTSIDE(
        "a loss keeps a mean in an attribute of torch",
        coupled=elsewhere(*OF_TORCH),
        benign=elsewhere(*OF_TORCH, factor=0.0),
    ),
]
