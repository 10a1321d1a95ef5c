"""The noise by which a training of a given length spends a given epsilon."""

from __future__ import annotations

import copy
from typing import Any

from dpmodel.data.loader import private_loader
from dpmodel.planning.release import ReleasePlan
from mechanisms.clipping import ClipMechanism, Fixed
from mechanisms.factory import NoiseMechanismsFactory
from mechanisms.noise import NoiseMechanism
from mechanisms.units import ClippedUnit
from monitors import checks
from monitors.accountant import Accountant
from monitors.calibration import calibrate_noise_multiplier
from monitors.ledger import Ledger


def noise_for_epsilon(
    target_epsilon: float,
    delta: float,
    loader: Any,
    epochs: int,
    *,
    noise: str = "Gaussian",
    clip_mech: ClipMechanism | None = None,
    norm_bound: float = 1.0,
    micro_batches: int | None = None,
    sampling: str = "poisson",
    accountant: str | Accountant = "rdp",
    spent: Ledger | None = None,
    **options: Any,
) -> NoiseMechanism:
    """The mechanism of the smallest first multiplier by which ``fit(loader, epochs)`` stays within the target.

    Solved on the ledger that the training will write, before any data are read. Give what the ``DPModel`` will get,
    under the same names: what differs there is charged there, and the target is then missed.

    Args:
        target_epsilon: Positive.
        delta: In (0, 1), below one over the number of examples.
        loader: As for ``fit``; its batch size and number of examples count.
        epochs: At least 1.
        noise: Name of the mechanism, for ``NoiseMechanismsFactory``.
        clip_mech: Adaptive clipping spends a part of the target; default ``Fixed``. It is left as it is.
        norm_bound: Initial L2 norm bound.
        micro_batches: Groups per batch; then one example counts twice.
        sampling: ``"poisson"`` or ``"shuffle"``.
        accountant: The one that the epsilon will be stated with.
        spent: What earlier trainings on these data have released; the target is then for all together.
        **options: Further arguments of the mechanism, such as ``decay_policy``: a schedule is solved as it is.

    Raises:
        ValueError: A value is out of range.
        CalibrationError: No multiplier meets the target.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> loader = DataLoader(TensorDataset(torch.zeros(1000, 4), torch.zeros(1000)), batch_size=50)
        >>> noise = noise_for_epsilon(3.0, 1e-5, loader, epochs=10, accountant="pld")
        >>> round(noise.noise_multiplier(0), 3)
        1.287
    """
    checks.positive_int(epochs=epochs)
    clip = copy.deepcopy(clip_mech) if clip_mech is not None else Fixed()
    clip.start(norm_bound)
    private, _ = private_loader(loader, sampling)
    before = spent if spent is not None else Ledger()
    sampler = private.make_sampler(first_partition=before.next_partition)
    unit = ClippedUnit.of(private.batch_size, micro_batches)

    def mechanism(multiplier: float) -> NoiseMechanism:
        return NoiseMechanismsFactory.create(noise, initial_noise_multiplier=multiplier, **options)

    def ledger_of(multiplier: float) -> Ledger:
        plan = ReleasePlan(mechanism(multiplier), clip, unit, sampler)
        return before.copy().extend(plan.ledger(epochs * private.steps_per_epoch), shift=0)

    return mechanism(calibrate_noise_multiplier(target_epsilon, delta, ledger_of, accountant))
