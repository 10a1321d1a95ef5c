"""What to do when the noisy count of adaptive clipping alone spends more than the target epsilon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpmodel.planning.from_config import make_clip, with_noise_multiplier
from dpmodel.planning.noise_floor import ledger_to_search
from monitors.calibration import LARGEST_MULTIPLIER
from monitors.spent import epsilon_text, resolve_accountant

if TYPE_CHECKING:
    from dpmodel.config.schema import Config

SETTING = "fraction_stddev"

#: Share of the target that the count may take: what is left must hide the gradients.
_SHARE = 0.5
_MOST_DOUBLINGS = 12


def count_remedy(config: Config, num_examples: int) -> str:
    """Which noise of the count would leave room for the gradients; empty where there is no count, or no such noise.

    Args:
        config: A configuration with a target epsilon that no noise multiplier meets.
        num_examples: Training examples.
    """
    target = config.privacy.target_epsilon
    stated = getattr(make_clip(config), SETTING, None)
    if target is None or not isinstance(stated, float):
        return ""
    for doublings in range(1, _MOST_DOUBLINGS + 1):
        wide = stated * 2**doublings
        spent = _alone(_with_stddev(config, wide), num_examples)
        if spent <= _SHARE * target:
            return (
                f"Here it is the noisy count of privacy.clip {config.privacy.clip.name!r}, whose {SETTING} is "
                f"{stated:g}: set privacy.clip.{SETTING} (--fraction-stddev) to {wide:g}, with which the count takes "
                f"epsilon {epsilon_text(spent)}, or make the batches larger."
            )
    return ""


def _alone(config: Config, num_examples: int) -> float:
    """Epsilon of a training whose gradients are drowned in noise."""
    privacy = config.privacy
    ledger = ledger_to_search(with_noise_multiplier(config, LARGEST_MULTIPLIER), num_examples)
    return resolve_accountant(privacy.accountant).epsilon(ledger, privacy.delta)


def _with_stddev(config: Config, value: float) -> Config:
    clip = config.privacy.clip.model_copy(update={SETTING: value})
    return config.model_copy(update={"privacy": config.privacy.model_copy(update={"clip": clip})})
