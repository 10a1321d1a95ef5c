"""What a training verifies of the ground that its epsilon stands on, in words, and what nothing can verify."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpmodel.training.step import PrivateStep

#: What no check covers, for every training.
NOT_COVERED = (
    "With engine 'loop', numbers that a network or a loss keeps outside of Python's objects (files, the environment, "
    "other processes), in the globals of installed packages, or in threads that run on.",
    "Vectorisation rules that operators of your own register outside of torch.library.custom_op, compiled extensions, "
    "and code that reads the printed text of a tensor: they may see a whole batch.",
    "A data set or a collate_fn that mixes examples at random or only where other examples than those at hand call for "
    "it, or a data set that changes an example by which others were read.",
    "Mechanisms of your own beyond what their trial looks at.",
    "What callbacks compute from the data by themselves, and values that they keep outside of the network.",
    "Weights that were copied into other modules (load_state_dict, a deepcopy of the network): the ledger does not "
    "follow them.",
    "Changes to the network between two calls of fit.",
)


def verified_by(step: PrivateStep) -> list[str]:
    """One sentence for each thing that is verified in a training: what, how and when.

    Args:
        step: The prepared step of the training.
    """
    from dpmodel.training.batch_check import (  # late: reports are written without torch
        LOOKED_AT_EVERY,
        LOOKED_AT_EXAMPLES,
    )

    engine = step.engine
    return [
        f"Each example moves the sum by its own clipped gradient alone: {engine.explain_isolation()}.",
        f"Clipped sums add up: the first batch, and {LOOKED_AT_EXAMPLES} "
        f"examples of one batch in {LOOKED_AT_EVERY}, secretly chosen and cut, against the sums of their halves.",
        "Network, loss and collation were tried on examples of the training data before the first release.",
        f"Weights and buffers hold what the last noised update left: compared before each step and after the last "
        f"callback ({step.guard.description}).",
        "Modules, forward methods and hooks of the network are those that were examined: compared before each step.",
        "Every clipped sum is accounted for at the sensitivity that its engine states: compared at each step.",
    ]
