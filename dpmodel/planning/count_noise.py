"""What to do if the noisy count of adaptive clipping costs too much of the budget."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mechanisms.factory import ClipMechanismsFactory
from monitors.calibration import LARGEST_MULTIPLIER
from monitors.events import GaussianEvent
from monitors.spent import epsilon_text, resolve_accountant

if TYPE_CHECKING:
    from dpmodel.planning.training_plan import TrainingPlan
    from mechanisms.clipping import ClipMechanism
    from monitors.events import PrivacyEvent

SETTING = "fraction_stddev"

#: Share of the target that the count may take: the rest must hide the gradients.
_SHARE = 0.5
_MOST_DOUBLINGS = 12


def count_warning(clip: ClipMechanism, count: PrivacyEvent, gradients: PrivacyEvent) -> str:
    """A warning if the count of a step costs more than its gradients; empty if it does not.

    Args:
        clip: The clip mechanism.
        count: The event of its count.
        gradients: The event of the gradients.

    Example:
        >>> clip = ClipMechanismsFactory.create("Gaussian", fraction_stddev=0.01)
        >>> count_warning(clip, GaussianEvent(10.0), GaussianEvent(1.0))
        ''
    """
    if not (isinstance(count, GaussianEvent) and isinstance(gradients, GaussianEvent)):
        return ""
    if gradients.noise_multiplier <= count.noise_multiplier:
        return ""
    stated = getattr(clip, SETTING, None)
    raised = "the noise of the count"
    if isinstance(stated, float):
        raised = f"{SETTING} to {2 * stated * gradients.noise_multiplier / count.noise_multiplier:.2g}"
    return (
        f"the noisy count of adaptive clipping costs more than the gradients: its noise multiplier is "
        f"{count.noise_multiplier:.3g}, theirs {gradients.noise_multiplier:.3g}. Raise {raised}, make the batches "
        "larger, or use a fixed bound"
    )


def count_remedy(plan: TrainingPlan, target_epsilon: float) -> str:
    """The noise of the count that leaves room for the gradients; empty if there is no count, or no such noise.

    Args:
        plan: A plan that no noise multiplier brings within the target.
        target_epsilon: The target.
    """
    stated = getattr(plan.release.clip, SETTING, None)
    if not isinstance(stated, float):
        return ""
    for doublings in range(1, _MOST_DOUBLINGS + 1):
        wide = stated * 2**doublings
        spent = _spent_by_count(plan, wide)
        if spent <= _SHARE * target_epsilon:
            return (
                f"Here it is the noisy count of privacy.clip {plan.config.privacy.clip.name!r}, whose {SETTING} is "
                f"{stated:g}: set privacy.clip.{SETTING} (--fraction-stddev) to {wide:g}, with which the count takes "
                f"epsilon {epsilon_text(spent)}, or make the batches larger."
            )
    return ""


def _spent_by_count(plan: TrainingPlan, fraction_stddev: float) -> float:
    """Epsilon of a training whose gradients are drowned in noise, with that noise of the count."""
    privacy = plan.config.privacy
    clip = ClipMechanismsFactory.create(privacy.clip.name, **{**privacy.clip.options, SETTING: fraction_stddev})
    clip.start(privacy.norm_bound)
    release = replace(plan.release.at(LARGEST_MULTIPLIER), clip=clip)
    return resolve_accountant(privacy.accountant).epsilon(release.summary(plan.steps), privacy.delta)
