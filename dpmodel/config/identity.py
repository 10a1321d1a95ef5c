"""The part of a configuration that determines the result of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dpmodel.config.schema import Config

#: Sections that do not change the result: speed, output files, and what is said about the training.
_NO_PART = ("performance", "output", "card")


def result_settings(config: Config) -> dict[str, Any]:
    """Every setting in ``config`` that the result depends on, as nested plain values."""
    values = config.model_dump(mode="json", exclude=set(_NO_PART))
    values["privacy"].pop("monitor")
    if not config.privacy.spent:  # earlier versions had no such setting
        values["privacy"].pop("spent")
    if config.privacy.num_examples_public is None:
        values["privacy"].pop("num_examples_public")
    for section in ("normalise", "augmentation"):
        if values[section] is None:
            values.pop(section)
    if config.normalise is not None and not config.normalise.whitening:
        values["normalise"].pop("whitening")
    values["data"].pop("cache", None)  # where images are kept does not change them
    features = values.pop("features")
    if features is not None:  # how they are computed and kept does not change them
        values["features"] = {key: value for key, value in features.items() if key not in ("cache", "batch_size")}
    return values


def settings_by_path(config: Config) -> dict[str, Any]:
    """The same settings by path, such as ``"training.epochs"``; lists are kept whole.

    Example:
        >>> config = Config.model_validate({
        ...     "network": "lenet5", "optimizer": "SGD", "privacy": {"noise_multiplier": 1},
        ...     "training": {"epochs": 1, "batch_size": 8}})
        >>> settings_by_path(config)["training.batch_size"]
        8
    """
    return dict(flat_settings(result_settings(config)))


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of each setting in nested plain values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
