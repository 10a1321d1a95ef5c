"""Identity of a training: configurations with the same digest have the same result."""

from __future__ import annotations

import hashlib
import json

from dpmodel.config.identity import result_settings
from dpmodel.config.schema import Config


def config_digest(config: Config) -> str:
    """SHA-256, as hex, of every setting in ``config`` that the result depends on.

    Example:
        >>> config = Config.model_validate({
        ...     "network": "lenet5", "optimizer": "SGD", "privacy": {"noise_multiplier": 1},
        ...     "training": {"epochs": 1, "batch_size": 8}})
        >>> faster = Config.model_validate({**config.model_dump(), "performance": {"threads": 2}})
        >>> config_digest(config) == config_digest(faster)
        True
    """
    return hashlib.sha256(json.dumps(result_settings(config), sort_keys=True).encode()).hexdigest()
