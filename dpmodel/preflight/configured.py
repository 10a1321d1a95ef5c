"""Every name in a configuration, and every argument beside one, is known: seen before anything is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from dpmodel.callbacks import LearningRateScheduler
from dpmodel.callbacks.registry import CALLBACKS
from dpmodel.config.faults import faults_in, one_error
from dpmodel.config.schema import Config
from dpmodel.data.datasets import DATASETS
from dpmodel.losses import build_loss
from dpmodel.metrics.names import named_metrics
from dpmodel.nets.networks import check_network
from dpmodel.optimizers import check_optimizer
from mechanisms.engines.base import ENGINES
from monitors.arguments import check_arguments


def require_known_names(config: Config) -> None:
    """Refuse unknown names and arguments of data set, network, loss, optimizer, metrics, engine and callbacks.

    Raises:
        ConfigError: Names all of them at once, each with file, line and the nearest known name.
    """
    faults = unknown_names(config)
    if faults:
        raise one_error(faults, config.source)


def unknown_names(config: Config) -> list[str]:
    r"""One line for each section that has an unknown name or argument; the names of ``privacy`` are checked on reading.

    Example:
        >>> from dpmodel.config import make_config
        >>> config = make_config({"network": "lenet", "optimizer": "Adan", "privacy": {"noise_multiplier": 1.0},
        ...                       "training": {"epochs": 1, "batch_size": 8}})
        >>> print("\n".join(unknown_names(config)))
        configuration: network: unknown network 'lenet'; did you mean 'lenet5'? Known: ...
        configuration: optimizer: unknown optimizer 'Adan'; did you mean 'Adam'? Known: ...
    """
    return faults_in(config, dict(_checks(config)))


def _checks(config: Config) -> Iterator[tuple[str, Callable[[], object]]]:
    network, optimizer, schedule = config.network, config.optimizer, config.optimizer.schedule
    yield "data", partial(DATASETS.get, config.data.name)
    yield "network", partial(check_network, network.name, network.module, network.options)
    yield "loss", partial(build_loss, config.loss.name, **config.loss.options)
    yield "optimizer", partial(check_optimizer, optimizer.name, optimizer.options)
    if schedule is not None:
        yield "optimizer.schedule", partial(LearningRateScheduler, schedule.name, schedule.interval, **schedule.options)
    if config.performance.engine != "auto":
        yield "performance.engine", partial(ENGINES.get, config.performance.engine)
    yield "training.metrics", partial(named_metrics, list(config.training.metrics))
    for index, callback in enumerate(config.callbacks):
        yield f"callbacks.{index}", partial(_check_callback, callback.name, callback.options)


def _check_callback(name: str, options: dict[str, object]) -> None:
    check_arguments(CALLBACKS.get(name), options, f"callback {name!r}")
