"""What an audited training will be: its size, its unit and its noise, chosen before anything is trained."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from dpmodel.audit.canaries import STRENGTH, TABLES
from dpmodel.audit.watch import stated_multiplier
from dpmodel.model import DPModel
from dpmodel.planning.release import ReleasePlan
from mechanisms.clipping import ClipMechanism
from mechanisms.noise import AUTO, NoiseMechanism
from mechanisms.sampling import SAMPLERS
from mechanisms.units import ClippedUnit
from monitors.errors import ConfigError

#: Bands of a mechanism that leaves their number open, and most bands: more would take many small steps.
OPEN_BANDS, MOST_BANDS = 8, 24

#: Largest batch of correlated noise, over the rows of one of ``bands`` groups.
_OF_A_GROUP = 0.75


@dataclass(frozen=True)
class AuditPlan:
    """What the audited training will be; chosen before anything is trained.

    Args:
        rows: Number of rows: ordinary examples and canaries.
        canaries: Number of canaries.
        batch_size: Expected examples per step.
        epochs: Epochs of the training.
        steps: Its steps.
        unit: The clipped unit.
        noise: The noise mechanism at the audit's multiplier.
    """

    rows: int
    canaries: int
    batch_size: int
    epochs: int
    steps: int
    unit: ClippedUnit
    noise: NoiseMechanism

    @property
    def rate(self) -> float:
        """Expected fraction of the rows in a step."""
        return self.batch_size / self.rows


def plan_audit(
    model: DPModel,
    batch_size: int,
    examples: int,
    canaries: int,
    *,
    steps: int,
    rate: float,
    epsilon: float,
    delta: float,
) -> AuditPlan:
    """The plan whose ledger has about ``epsilon``.

    Args:
        model: The audited model; its mechanisms are not changed.
        batch_size: Examples per step of the model's training, which tells the size of its micro-batches.
        examples: Ordinary examples.
        canaries: Canaries.
        steps: Steps, rounded up to whole epochs.
        rate: Expected fraction of the rows in a step.
        epsilon: Target of the noise multiplier.
        delta: Delta of the target.

    Raises:
        ConfigError: The multiplier of the noise cannot be chosen, or no multiplier meets the target.
    """
    rows = examples + canaries
    noise, bands = _few_bands(model.noise_mech)
    if bands > 1 and rate > _OF_A_GROUP / bands:  # as many draws of each row, in more and smaller steps
        steps = round(steps * rate * bands / _OF_A_GROUP)
        rate = _OF_A_GROUP / bands
    group = _group_size(model, batch_size, int(rate * rows / 2))
    batch_size = max(group, round(rate * rows / group) * group)
    unit = ClippedUnit(group, batch_size // group)
    sampler = SAMPLERS.get(model.sampling)(rows, batch_size)
    epochs = max(1, -(-steps // sampler.steps_per_epoch))
    clip = copy.deepcopy(model.clip_mech)
    clip.start(model.norm_bound)
    total = epochs * sampler.steps_per_epoch
    try:
        plan = ReleasePlan(noise, clip, unit, sampler)
        stated_multiplier(plan.event(0))
        # many different events take the exact accountant long
        constant = noise.noise_multiplier(0) == noise.noise_multiplier(total - 1) and plan.clip_event(0) is None
        accountant = "pld" if constant else "rdp"
        multiplier = plan.multiplier_for(epsilon, delta, total, accountant)
        noise = noise.at(multiplier)
    except ValueError as error:
        raise ConfigError(f"no noise for an audit at epsilon {epsilon:g}: {error}") from error
    return AuditPlan(rows, canaries, batch_size, epochs, total, unit, noise)


def _few_bands(noise: NoiseMechanism) -> tuple[NoiseMechanism, int]:
    """The mechanism with a moderate number of bands, and this number."""
    if noise.bands == AUTO:
        return noise.with_bands(OPEN_BANDS), OPEN_BANDS
    bands = int(noise.bands)
    return (noise, bands) if bands <= MOST_BANDS else (noise.with_bands(MOST_BANDS), MOST_BANDS)


def _group_size(model: DPModel, batch_size: int, most: int) -> int:
    """Examples per clipped unit: those of the model's micro-batches, but at most ``most``."""
    if model.micro_batches is None:
        return 1
    return min(ClippedUnit.of(batch_size, model.micro_batches).group_size, max(1, most))


def canary_share(clip: ClipMechanism, unit: ClippedUnit, names: list[str]) -> float:
    """The clipped norm of a canary over the sensitivity, as the clip mechanism states it; 1 for flat clipping.

    Args:
        clip: The clip mechanism, started.
        unit: The clipped unit.
        names: Names of the trained parameters, in order.
    """
    blocks = clip.blocks(names)
    bounds = np.asarray(clip.block_bounds(max(blocks) + 1))
    squares = np.zeros(len(bounds))
    for name, block in zip(names, blocks, strict=True):
        if name.partition(".")[0] in TABLES:
            squares[block] += 0.5
    norms = STRENGTH * clip.norm_bound * np.sqrt(squares)
    factors = clip.factors(torch.from_numpy(norms).float()[None])[0].double().numpy()
    clipped = np.minimum(norms * factors, bounds)
    return float(np.linalg.norm(clipped)) / (clip.norm_bound * unit.sensitivity_factor)
