"""What a training verifies of its privacy claim, in words, and what no check covers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpmodel.training.step import PrivateStep

#: What no check covers, for every training.
NOT_COVERED = (
    "With engine 'loop', numbers that a network or a loss keeps outside of Python's objects (files, the environment, "
    "other processes), in the globals of installed packages, or in threads that run on.",
    "Vectorisation rules that custom operators register outside of torch.library.custom_op, compiled extensions, and "
    "code that reads the printed text of a tensor: they may see a whole batch.",
    "A data set or a collate_fn that mixes examples at random or only for examples that were not tried, or a data set "
    "that changes an example depending on which others were read.",
    "Custom mechanisms beyond what their trial tests.",
    "Values that callbacks compute from the data directly, and values that they keep outside of the network.",
    "Weights that were copied into other modules (load_state_dict, a deepcopy of the network): the ledger does not "
    "follow them.",
    "Changes to the network between two calls of fit.",
)


def verified_by(step: PrivateStep) -> list[str]:
    """What is verified in a training, how and when: one sentence each.

    Args:
        step: The prepared step of the training.
    """
    from dpmodel.training.batch_check import (  # late: reports need no torch
        CHECKED_EVERY,
        CHECKED_EXAMPLES,
    )

    engine, size = step.engine, step.ranks.size
    shared = [
        f"{size} processes shared each batch: the drawn rows were compared at each step and the weights after each "
        "epoch, and the noise of each step was drawn once, on rank 0."
    ]
    return [
        *(shared if size > 1 else []),
        f"Each example moves the sum by its own clipped gradient only: {engine.explain_isolation()}.",
        f"Clipped sums add up: the first batch, and {CHECKED_EXAMPLES} "
        f"secretly chosen examples of one batch in {CHECKED_EVERY}, were compared with the sums of their halves.",
        "Network, loss and collation were tried on examples of the training data before the first release.",
        f"Weights and buffers hold what the last noised update left: compared before each step and after the last "
        f"callback ({step.guard.description}).",
        "Modules, forward methods and hooks of the network are those that were checked: compared before each step.",
        "Every clipped sum is accounted for at the sensitivity that its engine states: compared at each step.",
    ]
