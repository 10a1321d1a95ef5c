"""The releases that the noise of a training was calibrated beside, compared with those on its ledger."""

from __future__ import annotations

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
    missing = counted.beyond(ledger).total
    if missing:
        raise UnprotectedUpdateError(
            f"{counted.total:,} earlier releases were counted when the noise was solved for, but the ledger of this "
            f"model lacks {missing:,} of them, so its epsilon would be too small. Pass the same ledger to both: "
            "noise_for_epsilon(..., spent=ledger) and DPModel(..., ledger=ledger)"
        )
    more = 0 if resumed else ledger.beyond(counted).total
    if not more:
        return None
    return (
        f"the ledger of this model holds {more:,} releases that noise_for_epsilon did not count, so the training ends "
        "above its target epsilon. To stay within it, pass the ledger as spent=ledger to noise_for_epsilon"
    )
