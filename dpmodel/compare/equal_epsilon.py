"""Calibrates each variant for its schedule and clipping, and refuses variants that cannot spend the same epsilon."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dpmodel.compare.comparison import Comparison, Variant
from dpmodel.compare.identity import config_digest
from dpmodel.config.schema import Config
from dpmodel.data.fingerprint import Fingerprint
from dpmodel.planning.bands import CANDIDATES, leaves_bands_open, with_bands
from dpmodel.planning.from_config import with_noise_multiplier
from dpmodel.planning.training_plan import TrainingPlan
from dpmodel.runs.build import Task, build_task, build_training
from mechanisms.sampling import SAMPLERS
from monitors.atomic import write_atomically
from monitors.errors import ConfigError
from monitors.untrusted import read_json

#: Largest relative gap between a variant's epsilon and the target. Calibration is accurate to one part in ten thousand.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class CalibratedVariant:
    """A variant whose initial noise multiplier is known.

    Args:
        name: Its name.
        slug: The name of its folder.
        plan: What each of its runs releases, at the solved multiplier.
        epsilon: What a whole run spends.
        test_data: Identifies the data that its metrics are of.
    """

    name: str
    slug: str
    plan: TrainingPlan
    epsilon: float
    test_data: Fingerprint

    def config(self, seed: int) -> Config:
        """The configuration of the run whose initial weights have this seed."""
        config = self.plan.config
        return config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})


def within_target(epsilon: float, target: float) -> bool:
    """Whether ``epsilon`` is at most ``target``, and below it by no more than ``TOLERANCE``.

    Example:
        >>> within_target(2.9995, 3.0), within_target(3.0001, 3.0), within_target(2.9, 3.0)
        (True, False, False)
    """
    return target * (1 - TOLERANCE) <= epsilon <= target


def calibrate_variants(
    comparison: Comparison,
    cache: Path | None,
    announce: Callable[[str], None] = lambda name: None,
    *,
    solve: bool = True,
) -> tuple[CalibratedVariant, ...]:
    """Build every variant once and solve for its noise multiplier; nothing is trained.

    Args:
        comparison: The comparison.
        cache: JSON file of solved multipliers; each is checked again before it is used. None: no file.
        announce: Called with the name of each variant before it is solved.
        solve: Whether to solve for those that are not in ``cache``, and to write them into it. Otherwise they are
            refused: the same search on a different machine may end at a multiplier that differs in its last digit.

    Raises:
        ConfigError: A variant is wrong in a way that shows before training, cannot meet the target, or protects
            something other than the first variant does; with file and line.
    """
    known = {} if cache is None else _read(cache)
    found: list[CalibratedVariant] = []
    task: Task | None = None
    for variant in comparison.variants:
        announce(variant.name)
        if task is None or not _same_task(task.config, variant.config):
            task = build_task(variant.config)
        found.append(_calibrate(variant, comparison.definition.target.epsilon, known, task, solve=solve))
    _require_one_meaning(comparison, found)
    if cache is not None and solve:
        write_atomically(cache, json.dumps(known, indent=1) + "\n")
    return tuple(found)


def _same_task(one: Config, other: Config) -> bool:
    stated = one.data.model_copy(update={"num_examples": other.data.num_examples})
    sections = ("plugins", "features", "network", "loss", "performance")
    return stated == other.data and all(getattr(one, name) == getattr(other, name) for name in sections)


def _calibrate(
    variant: Variant, target: float, known: dict[str, float], task: Task, *, solve: bool
) -> CalibratedVariant:
    config, digest = variant.config, config_digest(variant.config)
    if digest in known:
        solved = _at_known(variant, known[digest], target, task)
        if solved is not None:
            return solved
    releases = _releases(config, task)
    if releases in known and solve:
        solved = _at_known(variant, known[releases], target, task)
        if solved is not None:
            known[digest] = known[releases]
            return solved
    if not solve:
        raise ConfigError(
            f"variant {variant.name!r} is not among those that the process to be joined has calibrated. Give both "
            "processes the same CONFIG, options and version of dpmodel"
        )
    solved = _planned(variant, config, task)
    if not within_target(solved.epsilon, target):
        raise ConfigError(
            f"{config.where('privacy.target_epsilon')}: variant {variant.name!r} cannot spend epsilon "
            f"{target:g}: at noise multiplier {solved.plan.noise_multiplier:g} it spends {solved.epsilon:.6g}. Set a "
            "target that every variant can meet"
        )
    known[digest] = known[releases] = solved.plan.noise_multiplier
    return solved


def _releases(config: Config, task: Task) -> str:
    """A key that variants with the same releases share, such as those that differ in the learning rate."""
    if leaves_bands_open(config):  # their number depends on the optimizer
        return f"config {config_digest(config)}"
    plan = build_training(with_noise_multiplier(config, 1.0), task).plan
    return f"releases {plan.ledger().digest()}"


def _at_known(variant: Variant, multiplier: float, target: float, task: Task) -> CalibratedVariant | None:
    """The variant at a multiplier that was solved before; None if that does not meet the target.

    Of an open number of bands, the epsilon tells which number the multiplier was solved for.
    """
    config, candidates = variant.config, [variant.config]
    if leaves_bands_open(config):
        sampler = SAMPLERS.create(config.privacy.sampling, len(task.data.train), config.training.batch_size)
        most = sampler.most_bands or 1
        candidates = [with_bands(config, bands) for bands in CANDIDATES if bands <= most]
    for candidate in candidates:
        found = _planned(variant, with_noise_multiplier(candidate, multiplier), task)
        if within_target(found.epsilon, target):
            return found
    return None


def _planned(variant: Variant, config: Config, task: Task) -> CalibratedVariant:
    plan = build_training(config, task).plan
    data = task.data.test_fingerprint
    return CalibratedVariant(variant.name, variant.slug, plan, plan.privacy_spent().epsilon, data)


def _require_one_meaning(comparison: Comparison, found: list[CalibratedVariant]) -> None:
    first = found[0]
    for variant, calibrated in zip(comparison.variants, found, strict=True):
        relation, expected = calibrated.plan.release.sampler.relation, first.plan.release.sampler.relation
        if relation != expected:
            raise ConfigError(
                f"{variant.config.where('privacy.sampling')}: variant {variant.name!r} protects neighbours that "
                f"differ by {relation!r}, but {first.name!r} those that differ by {expected!r}. Equal epsilons "
                "would not mean equal privacy; use the same sampling for all variants"
            )


def _read(cache: Path) -> dict[str, float]:
    """The usable multipliers in ``cache``; whether they meet the target is for the caller to compute."""
    try:
        values = read_json(cache)
    except (OSError, ValueError):
        return {}
    known = values.items() if isinstance(values, dict) else ()
    return {key: value for key, value in known if isinstance(value, float) and 0 < value < math.inf}
