"""The noise multiplier at which a training of a given length spends a given epsilon."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dpmodel.planning.bands import bands_table, best_bands
from dpmodel.planning.noise_floor import HIGHEST_FIRST, require_noise_left
from dpmodel.planning.release import ReleasePlan
from dpmodel.planning.workload import training_workload
from mechanisms.clipping import ClipMechanism, Fixed
from mechanisms.correlated.workload import Workload
from mechanisms.factory import NoiseMechanismsFactory
from mechanisms.noise import AUTO
from mechanisms.units import ClippedUnit
from monitors import checks
from monitors.errors import CalibrationError
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from mechanisms.noise import NoiseMechanism
    from monitors.accountant import Accountant


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
    optimizer: Optimizer | None = None,
    callbacks: Iterable[Any] = (),
    **options: Any,
) -> NoiseMechanism:
    """The noise mechanism with the smallest initial multiplier that keeps ``fit(loader, epochs)`` within the target.

    Solved on the ledger that the training will write, before any data are read. Give the arguments that ``DPModel``
    will get, under the same names: the training is charged for what it really does, so other arguments miss the target.

    Args:
        target_epsilon: Positive.
        delta: In (0, 1), below one over the number of examples.
        loader: As for ``fit``; only its batch size and its number of examples count.
        epochs: At least 1.
        noise: Name of the mechanism, for ``NoiseMechanismsFactory``.
        clip_mech: Adaptive clipping spends a part of the target; default ``Fixed``. It is not changed.
        norm_bound: Initial L2 norm bound.
        micro_batches: Groups per batch; one example then counts twice.
        sampling: ``"poisson"``, ``"shuffle"``, ``"cyclic_poisson"`` or ``"fixed_order"``.
        accountant: The accountant that epsilon will be stated with.
        spent: What was released about these data before, by trainings or statistics; the target then covers all of it
            together. Pass the same ledger to ``DPModel(ledger=...)``: ``fit`` refuses one that lacks these releases.
        optimizer: For ``bands="auto"``: the optimizer of the training, whose momentum and rates decide. Default: the
            sums of the gradients count.
        callbacks: For ``bands="auto"``: a ``LearningRateScheduler`` among them sets the rates.
        **options: Further arguments of the mechanism, such as ``decay_policy``; the schedule keeps its shape.

    Raises:
        ValueError: A value is out of range, or the schedule falls to nothing.
        CalibrationError: No multiplier meets the target.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> loader = DataLoader(TensorDataset(torch.zeros(1000, 4), torch.zeros(1000)), batch_size=50)
        >>> noise = noise_for_epsilon(3.0, 1e-5, loader, epochs=10, accountant="pld")
        >>> round(noise.noise_multiplier(0), 3)
        1.287
    """
    from dpmodel.data.loader import private_loader
    from dpmodel.data.stream import require_one_pass

    checks.positive_int(epochs=epochs)
    if "initial_noise_multiplier" in options:
        raise ValueError(
            f"initial_noise_multiplier={options['initial_noise_multiplier']!r} is what noise_for_epsilon solves for; "
            "leave it out, or build the mechanism with NoiseMechanismsFactory.create"
        )
    clip = copy.deepcopy(clip_mech) if clip_mech is not None else Fixed()
    clip.start(norm_bound)
    private, _ = private_loader(loader, sampling)
    require_one_pass(private.dataset, epochs)
    before = spent if spent is not None else Ledger()
    mechanism, steps = NoiseMechanismsFactory.create(noise, **options), epochs * private.steps_per_epoch
    unit = ClippedUnit.of(private.batch_size, micro_batches)

    def plan_with(noise: NoiseMechanism) -> ReleasePlan:
        sampler = private.make_sampler(first_partition=before.next_partition)
        return ReleasePlan(noise, clip, unit, sampler)

    if mechanism.bands == AUTO:
        workload = (
            Workload.of_prefix_sums(steps)
            if optimizer is None
            else training_workload(optimizer, callbacks, epochs, private.steps_per_epoch)
        )
        table = bands_table(
            lambda bands: plan_with(mechanism.with_bands(bands)), workload, target_epsilon, delta, accountant, before
        )
        mechanism = mechanism.with_bands(best_bands(table).bands)
    plan = plan_with(mechanism)
    try:
        found = mechanism.at(plan.multiplier_for(target_epsilon, delta, steps, accountant, before))
    except CalibrationError:
        require_noise_left(mechanism.at(HIGHEST_FIRST), steps)
        raise
    found.spent_before = before.copy()
    return found
