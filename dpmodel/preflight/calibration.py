"""The releases before a training: those that its noise was calibrated beside, and what they state."""

from __future__ import annotations

from dpmodel.data.loader import PrivateLoader
from mechanisms.answers import TRUE_SIZE
from mechanisms.noise import NoiseMechanism
from monitors.errors import UnprotectedUpdateError
from monitors.ledger import Ledger


def require_counted(noise: NoiseMechanism, ledger: Ledger, *, resumed: bool) -> str | None:
    """Require the releases that ``noise_for_epsilon`` counted as spent to be on the ledger of the model.

    Args:
        noise: The noise of the model.
        ledger: The ledger of the model, before the training records on it.
        resumed: Whether the ledger already holds a part of this training.

    Returns:
        A line for the user if the ledger holds releases that were not counted; otherwise None.

    Raises:
        UnprotectedUpdateError: A counted release is missing.
    """
    counted = noise.spent_before
    if counted is None:
        return None
    missing = counted.number_outside(ledger)
    if missing:
        raise UnprotectedUpdateError(
            f"{counted.total:,} earlier releases were counted when the noise was solved for, but the ledger of this "
            f"model lacks {missing:,} of them, so its epsilon would be too small. Pass the same ledger to both: "
            "noise_for_epsilon(..., spent=ledger) and DPModel(..., ledger=ledger)"
        )
    more = 0 if resumed else ledger.number_outside(counted)
    if not more:
        return None
    return (
        f"the ledger of this model holds {more:,} releases that noise_for_epsilon did not count, so the training ends "
        "above its target epsilon. To stay within it, pass the ledger as spent=ledger to noise_for_epsilon"
    )


def require_private_size(loader: PrivateLoader, ledger: Ledger) -> None:
    """Require that no statistics on the ledger state a number of rows that the loader keeps private.

    Raises:
        UnprotectedUpdateError: They were divided by it.
    """
    if loader.num_examples_public is not None and TRUE_SIZE in ledger.notes:
        raise UnprotectedUpdateError(
            f"the private statistics on the ledger of this model were computed with the true number of rows, which "
            f"num_examples_public={loader.num_examples_public} keeps private. Leave out num_examples_public, or use "
            "public constants in place of the statistics"
        )
