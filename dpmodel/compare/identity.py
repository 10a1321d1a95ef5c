"""When two configurations describe the same training."""

from __future__ import annotations

import hashlib
import json

from dpmodel.config.schema import Config

#: Sections that change no number of the result: speed, and what is left behind.
_NO_PART = ("performance", "output")


def config_digest(config: Config) -> str:
    """SHA-256 of everything in ``config`` that the result depends on, as hex.

    Example:
        >>> config = Config.model_validate({
        ...     "network": "lenet5", "optimizer": "SGD", "privacy": {"noise_multiplier": 1},
        ...     "training": {"epochs": 1, "batch_size": 8}})
        >>> faster = Config.model_validate({**config.model_dump(), "performance": {"threads": 2}})
        >>> config_digest(config) == config_digest(faster)
        True
    """
    values = config.model_dump(mode="json", exclude=set(_NO_PART))
    values["privacy"].pop("monitor")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
