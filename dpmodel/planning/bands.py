"""The number of bands of correlated noise: what each number costs, and the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechanisms.factory import NoiseMechanismsFactory
from mechanisms.noise import AUTO
from monitors.accountant import DEFAULT_DELTA
from monitors.errors import CalibrationError
from monitors.spent import resolve_accountant

if TYPE_CHECKING:
    from dpmodel.config.schema import Config
    from dpmodel.planning.release import ReleasePlan
    from dpmodel.planning.training_plan import TrainingPlan
    from mechanisms.correlated.workload import Workload
    from monitors.accountant import Accountant
    from monitors.ledger import Ledger

#: Numbers of bands from which a plan chooses.
CANDIDATES = (1, 2, 4, 8, 16, 32)

#: A larger number of bands is chosen only if it lowers the noise by more than this share: it costs memory, and single
#: steps have more noise.
_WORTH = 0.05


@dataclass(frozen=True)
class BandsRow:
    """One number of bands at the target epsilon.

    Args:
        bands: Number of bands.
        noise_multiplier: Smallest initial noise multiplier that meets the target.
        noise: Standard deviation of the noise in the last weights, over that of 1 band.
    """

    bands: int
    noise_multiplier: float
    noise: float


def bands_table(
    plan_of: Callable[[int], ReleasePlan],
    workload: Workload,
    target_epsilon: float,
    delta: float,
    accountant: str | Accountant = "rdp",
    before: Ledger | None = None,
    stated: int | None = None,
) -> list[BandsRow]:
    """What each number of bands in ``CANDIDATES`` that the sampling allows needs to meet a target epsilon.

    Args:
        plan_of: The plan for a number of bands.
        workload: What the optimizer makes of the noise.
        target_epsilon: Epsilon of the whole training.
        delta: Its delta.
        accountant: Name or object.
        before: Earlier releases, which the target covers too.
        stated: A further number of bands.

    Raises:
        ValueError: The sampling is for independent noise only.
        CalibrationError: No multiplier meets the target.
    """
    sampler = plan_of(1).sampler
    if sampler.most_bands is None:
        sampler.separate(2)  # raises
    most = min(sampler.most_bands or 1, workload.steps)
    rows: list[BandsRow] = []
    first = None
    numbers = {*CANDIDATES, stated or 1}
    for bands in (bands for bands in sorted(numbers) if bands <= most):
        plan = plan_of(bands)
        try:
            multiplier = plan.multiplier_for(target_epsilon, delta, workload.steps, accountant, before)
        except CalibrationError:
            if bands == 1:
                raise
            break
        noise = multiplier * plan.noise.error(workload)
        first = first or noise
        rows.append(BandsRow(bands, multiplier, noise / first))
    return rows


def best_bands(rows: Sequence[BandsRow]) -> BandsRow:
    """The fewest bands whose noise is within 5 % of the least.

    Example:
        >>> best_bands([BandsRow(1, 1.0, 1.0), BandsRow(2, 1.3, 0.9), BandsRow(4, 1.7, 0.895)]).bands
        2
    """
    least = min(row.noise for row in rows)
    return next(row for row in rows if row.noise <= least * (1 + _WORTH))


def target_of_one_band(
    plan_of: Callable[[int], ReleasePlan],
    steps: int,
    delta: float,
    accountant: str | Accountant = "rdp",
    before: Ledger | None = None,
) -> float:
    """Epsilon of ``steps`` steps with 1 band: where numbers of bands are compared if a multiplier is stated."""
    planned = plan_of(1).summary(steps)
    ledger = planned if before is None else before.copy().extend(planned, shift=0)
    return resolve_accountant(accountant).epsilon(ledger, delta)


def best_for_multiplier(plan_of: Callable[[int], ReleasePlan], workload: Workload) -> int:
    """The best number of bands at the epsilon (``rdp``) that 1 band costs with the multiplier of the plans."""
    target = target_of_one_band(plan_of, workload.steps, DEFAULT_DELTA)
    return best_bands(bands_table(plan_of, workload, target, DEFAULT_DELTA)).bands


def configured_bands(plan: TrainingPlan, target_epsilon: float | None = None) -> list[BandsRow]:
    """``bands_table`` of a configured training.

    Args:
        plan: A plan whose noise mechanism takes ``bands``.
        target_epsilon: Default: that of the plan or, if it states a multiplier, the epsilon of 1 band.
    """
    from dpmodel.planning.from_config import release_plan
    from dpmodel.planning.workload import configured_workload

    config, privacy, size = plan.config, plan.config.privacy, plan.release.sampler.num_examples

    def plan_of(bands: int) -> ReleasePlan:
        return release_plan(with_bands(config, bands), size, plan.noise_multiplier, plan.before)

    target = target_epsilon or plan.target_epsilon or privacy.target_epsilon
    if target is None:
        target = target_of_one_band(plan_of, plan.steps, privacy.delta, privacy.accountant, plan.before)
    workload = configured_workload(config, plan.steps_per_epoch)
    bands = plan.release.noise.bands
    stated = bands if isinstance(bands, int) else None
    return bands_table(plan_of, workload, target, privacy.delta, privacy.accountant, plan.before, stated)


def leaves_bands_open(config: Config) -> bool:
    """Whether the configuration leaves the number of bands to its plan."""
    noise = config.privacy.noise
    if noise is None:
        return False
    return NoiseMechanismsFactory.create(noise.name, **noise.options).bands == AUTO


def with_bands(config: Config, bands: int) -> Config:
    """The configuration with that number of bands."""
    assert config.privacy.noise is not None
    section = type(config.privacy.noise)(
        name=config.privacy.noise.name, **config.privacy.noise.options | {"bands": bands}
    )
    return config.model_copy(update={"privacy": config.privacy.model_copy(update={"noise": section})})
