"""The same noise under different rules, side by side, with what each figure assumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dpmodel.planning.training_plan import TrainingPlan
from mechanisms.noise import Gaussian
from mechanisms.sampling import SAMPLERS
from mechanisms.units import ClippedUnit
from monitors.errors import UnsupportedEventError
from monitors.events import ComposedEvent, DisjointEvent, GaussianEvent, PrivacyEvent
from monitors.ledger import Ledger
from monitors.spent import resolve_accountant
from monitors.tuning import best_of, best_of_random

#: The accountant that is exact for releases without sampling.
EXACT_UNSAMPLED = "zcdp"

#: The accountant that has a rule for a search that stops at random.
RANDOM_STOPPING = "rdp"

#: The accountant of Poisson samples if none of the requested ones has a rule for them.
SAMPLED = "rdp"


@dataclass(frozen=True)
class Scenario:
    """One rule of sampling and clipping with its figures.

    Args:
        name: In a few words.
        figures: Epsilon by accountant; the reason if an accountant cannot state one.
        assumes: What must hold for the figure to be a guarantee, in one line.
        configured: Whether the configuration uses this rule.
    """

    name: str
    figures: dict[str, float | str]
    assumes: str
    configured: bool = False

    @property
    def best(self) -> tuple[float, str] | None:
        """The smallest epsilon and the accountant that proves it; None if no accountant can."""
        stated = [(value, name) for name, value in self.figures.items() if isinstance(value, float)]
        return min(stated) if stated else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        figures = {name: "inf" if value == float("inf") else value for name, value in self.figures.items()}
        return {"name": self.name, "epsilon": figures, "assumes": self.assumes, "configured": self.configured}


def figures_of(ledger: Ledger, delta: float, accountants: Sequence[str]) -> dict[str, float | str]:
    """Epsilon of ``ledger`` by each accountant, or the reason if it has no rule for the ledger."""
    figures: dict[str, float | str] = {}
    for name in accountants:
        try:
            figures[name] = resolve_accountant(name).epsilon(ledger, delta)
        except UnsupportedEventError as error:
            figures[name] = f"no statement: {error}"
    return figures


def scenarios(
    plan: TrainingPlan,
    accountants: Sequence[str],
    configured: dict[str, float | str],
    tuning_runs: int | None = None,
) -> tuple[Scenario, ...]:
    """The rules that people mix up, for the noise, batch size and epochs of ``plan``.

    Args:
        plan: The plan.
        accountants: Names; releases without sampling get the exact formula as well.
        configured: Figures of the plan itself, which are not computed again.
        tuning_runs: None, or the number of trainings of a search that publishes the best: two ways to charge it.
    """
    privacy = plan.config.privacy
    grouped = plan.release.unit.grouped
    rows = [
        _poisson(plan, accountants, configured if privacy.sampling == "poisson" and not grouped else None),
        *_micro_batches(plan, accountants, configured if privacy.sampling == "poisson" and grouped else None),
        *_shuffled(plan, accountants, configured if privacy.sampling == "shuffle" else None),
        *_tuned(plan, accountants, tuning_runs),
    ]
    if not any(row.configured for row in rows):
        rows.insert(0, Scenario("as configured", configured, plan.release.sampler.describe(), configured=True))
    return tuple(rows)


def _poisson(plan: TrainingPlan, accountants: Sequence[str], known: dict[str, float | str] | None) -> Scenario:
    figures = known or _sampled_figures(plan, accountants, None)
    assumes = "each example joins each step by its own coin and is clipped individually; add or remove one example"
    if plan.config.privacy.sampling != "poisson":
        assumes = f"optimistic, NOT a guarantee for sampling: {plan.config.privacy.sampling}: {assumes}"
    elif plan.release.unit.grouped:
        assumes = f"not what is configured (groups are clipped): {assumes}"
    return Scenario("Poisson, per example", figures, assumes, configured=known is not None)


def _micro_batches(
    plan: TrainingPlan, accountants: Sequence[str], known: dict[str, float | str] | None
) -> list[Scenario]:
    batch = plan.config.training.batch_size
    groups = plan.config.privacy.micro_batches or _halves(batch)
    if groups is None or batch // groups == 1:
        return []
    figures = known or _sampled_figures(plan, accountants, groups)
    assumes = (
        f"the mean of a group of {batch // groups} is clipped: one example can move it by twice the bound, so the "
        "multiplier counts half"
    )
    return [Scenario(f"Poisson, micro-batches of {batch // groups}", figures, assumes, configured=known is not None)]


def _shuffled(plan: TrainingPlan, accountants: Sequence[str], known: dict[str, float | str] | None) -> list[Scenario]:
    names = tuple(dict.fromkeys((*accountants, EXACT_UNSAMPLED)))
    micro_batches = plan.config.privacy.micro_batches
    ledger = _ledger(plan, sampling="shuffle", micro_batches=micro_batches)
    delta = plan.config.privacy.delta
    rows = [
        Scenario(
            "shuffle, zero out one",
            {**figures_of(ledger, delta, names), **(known or {})},
            "each example is in one batch per epoch; no amplification is claimed",
            configured=known is not None,
        )
    ]
    doubled = _replace_one(ledger)
    if doubled is not None and micro_batches is None:
        assumes = "as above, for neighbours that differ in the value of one example: twice the sensitivity"
        rows.append(Scenario("shuffle, replace one", figures_of(doubled, delta, names), assumes))
    return rows


def _tuned(plan: TrainingPlan, accountants: Sequence[str], runs: int | None) -> list[Scenario]:
    if runs is None or runs == 1:
        return []
    one, delta = plan.summary(), plan.config.privacy.delta
    with_rdp = tuple(dict.fromkeys((*accountants, RANDOM_STOPPING)))
    return [
        Scenario(
            f"best of {runs} trainings",
            figures_of(best_of(one, runs), delta, accountants),
            "as configured, with every training of the search composed: all of them may be inspected",
        ),
        Scenario(
            f"best of about {runs} trainings",
            figures_of(best_of_random(one, runs), delta, with_rdp),
            "as configured, with their number drawn from a geometric distribution of that mean and kept secret; only "
            "the best is inspected",
        ),
    ]


def _sampled_figures(
    plan: TrainingPlan, accountants: Sequence[str], micro_batches: int | None
) -> dict[str, float | str]:
    ledger, delta = _ledger(plan, sampling="poisson", micro_batches=micro_batches), plan.config.privacy.delta
    figures = figures_of(ledger, delta, accountants)
    if any(isinstance(value, float) for value in figures.values()):
        return figures
    return {**figures, **figures_of(ledger, delta, (SAMPLED,))}


def _ledger(plan: TrainingPlan, sampling: str, micro_batches: int | None) -> Ledger:
    release, batch_size = plan.release, plan.config.training.batch_size
    sampler = SAMPLERS.create(sampling, release.sampler.num_examples, batch_size)
    unit = ClippedUnit.of(batch_size, micro_batches)
    noise = release.noise if release.noise.bands == 1 else Gaussian(initial_noise_multiplier=plan.noise_multiplier)
    return plan.before.copy().extend(replace(release, noise=noise, unit=unit, sampler=sampler).summary(plan.steps))


def _halves(batch_size: int) -> int | None:
    """The most groups of more than one example that a batch divides into."""
    return next((batch_size // size for size in range(2, batch_size + 1) if batch_size % size == 0), None)


def _replace_one(ledger: Ledger) -> Ledger | None:
    """The ledger at twice the sensitivity; None if it holds anything but Gaussians."""
    doubled = Ledger(ledger.notes)
    for event, count in ledger:
        changed = _at_twice_the_sensitivity(event)
        if changed is None:
            return None
        doubled.record(changed, count)
    return doubled


def _at_twice_the_sensitivity(event: PrivacyEvent) -> PrivacyEvent | None:
    if isinstance(event, GaussianEvent):
        return GaussianEvent(event.noise_multiplier / 2)
    if isinstance(event, DisjointEvent):
        inner = _at_twice_the_sensitivity(event.event)
        return None if inner is None else replace(event, event=inner)
    if isinstance(event, ComposedEvent):
        parts = [_at_twice_the_sensitivity(part) for part in event.events]
        known = tuple(part for part in parts if part is not None)
        return ComposedEvent(known) if len(known) == len(parts) else None
    return None
