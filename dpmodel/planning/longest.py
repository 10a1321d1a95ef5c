"""The longest training within an epsilon."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dpmodel.config.faults import locating_errors
from dpmodel.planning.bands import leaves_bands_open
from dpmodel.planning.noise_floor import falls_away, no_noise
from dpmodel.planning.training_plan import TrainingPlan, plan_training
from monitors import checks
from monitors.calibration import max_steps
from monitors.errors import CalibrationError, ConfigError
from monitors.events import DisjointEvent
from monitors.ledger import Ledger
from monitors.spent import epsilon_text, privacy_spent

if TYPE_CHECKING:
    from dpmodel.config.schema import Config

#: The search for the most epochs gives up at this many epochs or steps (seconds of recording them).
MOST_EPOCHS, MOST_STEPS = 100_000, 2_000_000


def longest_training(config: Config, max_epsilon: float, num_examples: int | None = None) -> TrainingPlan:
    """The plan with the most epochs whose epsilon is at most ``max_epsilon``.

    Args:
        config: A configuration with a stated noise multiplier; its own number of epochs is not used.
        max_epsilon: Positive.
        num_examples: As for ``plan_training``.

    Raises:
        ConfigError: The configuration has no noise multiplier, leaves the number of bands open, or more than
            ``MOST_EPOCHS`` epochs or ``MOST_STEPS`` steps fit.
        CalibrationError: Not even one epoch fits.
    """
    with locating_errors(config, "training.epochs"):
        checks.positive(max_epsilon=max_epsilon)
    privacy, training = config.privacy, config.training
    if privacy.noise_multiplier is None:
        raise ConfigError(
            f"{config.where('privacy')}: the most epochs follow from a noise multiplier; give privacy.noise_multiplier"
        )
    if leaves_bands_open(config):
        raise ConfigError(
            f"{config.where('privacy.noise')}: the most epochs follow from a number of bands, and the best number "
            "follows from the epochs; give bands a number (a budget for --epochs shows what each number costs)"
        )
    one_epoch = config.model_copy(update={"training": training.model_copy(update={"epochs": 1})})
    plan = plan_training(one_epoch, num_examples)
    limit = max(1, min(MOST_EPOCHS, MOST_STEPS // plan.steps_per_epoch))
    if _surely_fits(plan, limit, max_epsilon):
        raise _endless(plan, limit, max_epsilon)

    def ledger_of(epochs: int) -> Ledger:
        steps = epochs * plan.steps_per_epoch
        return no_noise() if falls_away(plan.release.noise, steps) else plan.summary(steps)

    try:
        with locating_errors(config, "privacy"):
            epochs = max_steps(max_epsilon, privacy.delta, ledger_of, privacy.accountant, limit=limit)
    except ConfigError as error:
        if isinstance(error.__cause__, CalibrationError):
            raise _endless(plan, limit, max_epsilon) from error
        raise
    if epochs == 0:
        raise CalibrationError(
            f"not even one epoch fits into epsilon {max_epsilon:g} at delta {privacy.delta:g}: one epoch spends "
            f"{epsilon_text(plan.privacy_spent().epsilon, 4)}. Raise the noise multiplier, or make the batches smaller"
        )
    longest = config.model_copy(update={"training": training.model_copy(update={"epochs": epochs})})
    return replace(plan, config=longest)


def _surely_fits(plan: TrainingPlan, epochs: int, max_epsilon: float) -> bool:
    """Whether ``epochs`` epochs fit, decided without recording their steps; False if that cannot be decided.

    If the last step releases what the first does, all steps between are assumed to do so too. That is good enough to
    refuse a question, and for nothing else.
    """
    release, privacy, steps = plan.release, plan.config.privacy, epochs * plan.steps_per_epoch
    if release.noise.noise_multiplier(steps - 1) != release.noise.noise_multiplier(0):
        return False
    event, last, count = release.event(0), release.event(steps - 1), steps
    if isinstance(event, DisjointEvent) and isinstance(last, DisjointEvent):
        # The steps of an epoch or a round share no example: together they cost what one of them costs.
        event, last, count = event.event, last.event, release.sampler.partitions(steps)
    if last != event:
        return False
    with locating_errors(plan.config, "privacy"):
        return (
            privacy_spent(plan.before.copy().record(event, count), privacy.delta, privacy.accountant).epsilon
            <= max_epsilon
        )


def _endless(plan: TrainingPlan, epochs: int, max_epsilon: float) -> ConfigError:
    steps, delta = epochs * plan.steps_per_epoch, plan.config.privacy.delta
    return ConfigError(
        f"{plan.config.where('privacy.noise_multiplier')}: more than {epochs:,} epochs ({steps:,} steps) fit into "
        f"epsilon {max_epsilon:g} at delta {delta:g} with privacy.noise_multiplier={plan.noise_multiplier:g}, and the "
        "search ends there. Lower the noise multiplier or the epsilon, or choose a number of epochs and ask what it "
        "spends (--epochs)"
    )
