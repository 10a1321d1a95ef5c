"""Checks every name in a configuration, and the arguments beside it, before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dpmodel.augmentation import build_transform
from dpmodel.callbacks import LearningRateScheduler
from dpmodel.callbacks.registry import CALLBACKS
from dpmodel.config.faults import faults_in, one_error
from dpmodel.config.schema import Config
from dpmodel.data.datasets import DATASETS
from dpmodel.features.transforms import check_features
from dpmodel.losses import build_loss
from dpmodel.metrics.names import named_metrics
from dpmodel.nets.networks import check_network
from dpmodel.optimizers import check_optimizer
from mechanisms.engines.base import ENGINES
from monitors.arguments import check_arguments


def require_known_names(config: Config) -> None:
    """Refuse unknown names, and unknown arguments beside them, in all sections but ``privacy``.

    Raises:
        ConfigError: There are unknown names; lists all of them with file, line and the nearest known name.
    """
    faults = unknown_names(config)
    if faults:
        raise one_error(faults, config.source)


def unknown_names(config: Config) -> list[str]:
    r"""One line per section with an unknown name or argument; reading the configuration checks those of ``privacy``.

    Example:
        >>> from dpmodel.config import make_config
        >>> config = make_config({"network": "lenet", "optimizer": "Adan", "privacy": {"noise_multiplier": 1.0},
        ...                       "training": {"epochs": 1, "batch_size": 8}})
        >>> print("\n".join(unknown_names(config)))
        configuration: network: unknown network 'lenet'; did you mean 'lenet5'? Known: ...
        configuration: optimizer: unknown optimizer 'Adan'; did you mean 'Adam'? Known: ...
    """
    network, optimizer, schedule = config.network, config.optimizer, config.optimizer.schedule
    checks: dict[str, Callable[[], object]] = {
        "data": partial(DATASETS.get, config.data.name),
        "network": partial(check_network, network.name, network.module, network.options),
        "loss": partial(build_loss, config.loss.name, **config.loss.options),
        "optimizer": partial(check_optimizer, optimizer.name, optimizer.options),
    }
    if config.features is not None:
        checks["features"] = partial(check_features, config.features.name, config.features.options)
    if schedule is not None:
        checks["optimizer.schedule"] = partial(
            LearningRateScheduler, schedule.name, schedule.interval, **schedule.options
        )
    if config.performance.engine != "auto":
        checks["performance.engine"] = partial(ENGINES.get, config.performance.engine)
    if config.augmentation is not None:
        for index, transform in enumerate(config.augmentation.transforms):
            at = f"augmentation.transforms.{index}"
            checks[at] = partial(build_transform, transform.name, **transform.options)
    checks["training.metrics"] = partial(named_metrics, list(config.training.metrics))
    for index, callback in enumerate(config.callbacks):
        checks[f"callbacks.{index}"] = partial(_check_callback, callback.name, callback.options)
    return faults_in(config, checks)


def _check_callback(name: str, options: dict[str, object]) -> None:
    check_arguments(CALLBACKS.get(name), options, f"callback {name!r}")
