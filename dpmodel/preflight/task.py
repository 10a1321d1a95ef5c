"""The data, the network and the metrics of a configuration: whether they fit together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpmodel.config import Config, locating_errors
from dpmodel.data import DataSplits
from dpmodel.metrics.names import MetricSpec, is_loss, named_metrics
from dpmodel.preflight.network import require_valid
from mechanisms.engines.probing import inference, preserve_state
from monitors.errors import ConfigError, DataError, UnsupportedModuleError


def require_stated_size(config: Config, data: DataSplits) -> None:
    """Refuse data whose size differs from ``data.num_examples``.

    Raises:
        ConfigError: The sizes differ.
    """
    stated, found = config.data.num_examples, len(data.train)
    if stated is not None and stated != found:
        raise ConfigError(
            f"{config.where('data.num_examples')}: data.num_examples is {stated}, but {data.name!r} has {found} "
            "training examples here; the sampling rate depends on it. Correct it, or leave it out"
        )


def require_stated_classes(data: DataSplits, num_examples_public: int | None) -> None:
    """Refuse classes that were counted in private labels, if the number of examples is private.

    Raises:
        ValueError: ``num_examples_public`` is given, but not ``data.num_classes``.
    """
    if num_examples_public is not None and data.classes_counted:
        raise ValueError(
            "data.num_classes is not given, so the classes were counted in the training labels, and a single example "
            f"more could add an output to the network, which privacy.num_examples_public={num_examples_public} does "
            "not cover; state data.num_classes"
        )


def require_network_fits(
    config: Config, network: nn.Module, data: DataSplits, device: torch.device, *, private: bool = True
) -> None:
    """Pass some examples through the network, so that a wrong shape is found before the noise is calibrated.

    Faults that only a probe of the network shows, such as layers that mix examples, are left to ``fit`` (see
    ``locating_refusals``).

    Raises:
        ConfigError: It has a layer that cannot be trained privately, cannot take the inputs, or has too few outputs.
    """
    if private:
        with locating_refusals(config, "network"):
            require_valid(network)
    x = data.train.batch(torch.arange(1))[0]
    try:
        with inference(network), preserve_state(network):
            for inputs in (_telling(data.test.x), _telling(data.train.x)):
                outputs = network(data.train.transform_batch(inputs).to(device))
    except Exception as error:
        raise ConfigError(
            f"{config.where('network')}: network: it cannot take inputs of shape {tuple(x.shape[1:])}{_range(data)} "
            f"from data set {data.name!r}: {error}"
        ) from error
    if isinstance(outputs, Tensor) and outputs.dim() == 2 and 1 < outputs.shape[1] < data.num_classes:
        raise ConfigError(
            f"{config.where('network')}: network: it has {outputs.shape[1]} outputs, but data set {data.name!r} has "
            f"{data.num_classes} classes; set num_classes: {data.num_classes}"
        )


@contextmanager
def locating_refusals(config: Config, setting: str | None = None) -> Iterator[None]:
    """Add the place in the configuration to the refusal of a network, a loss, an engine, data or metrics.

    Args:
        config: The configuration.
        setting: The setting that is at fault; default: the setting of the check that raised the error.

    Raises:
        ConfigError: Instead of an ``UnsupportedModuleError``.
        DataError: The same error, with its place.
    """
    try:
        yield
    except (UnsupportedModuleError, DataError) as error:
        settings = setting or getattr(error, "setting", None)
        if settings is None:
            raise
        found = _first_written(config, (settings,) if isinstance(settings, str) else settings)
        text = f"{config.where(found)}: {found}: {error}"
        if isinstance(error, DataError):
            error.args = (text,)
            raise
        remedy = "\nIn a configuration, network.fix: true calls dpmodel.fix" if "dpmodel.fix" in text else ""
        raise ConfigError(text + remedy) from error


def _first_written(config: Config, settings: Sequence[str]) -> str:
    """The first setting that the configuration states; the last one if it states none."""
    stated = config.model_dump(exclude_unset=True)
    for path in settings:
        value: Any = stated
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return path
    return settings[-1]


def require_metrics_fit(config: Config, data: DataSplits) -> None:
    """Refuse metrics of classes if the targets are numbers, or several labels per example.

    Raises:
        ConfigError: There is such a metric; says what to use instead.
    """
    targets = data.test.y
    if not targets.is_floating_point() or _are_two_classes(targets):
        return
    with locating_errors(config, "training.metrics"):
        named = named_metrics(list(config.training.metrics))
        wrong = next((name for name, entry in named.items() if _is_of_classes(entry)), None)
        if wrong is not None:
            raise ValueError(
                f"{wrong!r} takes one class index per example, but data set {data.name!r} has {data.num_classes} "
                f"float{'s' if data.num_classes > 1 else ''} each: use training.metrics: [mae, mse] for numbers to "
                "predict, and [loss] for several labels per example, or a metric that a plugin registers (plugins)"
            )


def _is_of_classes(entry: Any) -> bool:
    return isinstance(entry, MetricSpec) and not is_loss(entry) and "num_classes" in entry.asked


def _telling(x: Tensor) -> Tensor:
    """The first example, and for integers those with the smallest and the largest: an embedding may lack them."""
    if x.is_floating_point() or x.dtype == torch.uint8:
        return x[:1]
    values = x.flatten(1)
    return x[torch.stack([torch.tensor(0), values.amin(1).argmin(), values.amax(1).argmax()])]


def _range(data: DataSplits) -> str:
    x = [part.x for part in (data.train, data.test)]
    if x[0].is_floating_point() or x[0].dtype == torch.uint8:
        return ""
    return f" with integers from {min(int(part.min()) for part in x)} to {max(int(part.max()) for part in x)}"


def _are_two_classes(targets: Tensor) -> bool:
    return targets.shape[1] == 1 and bool(((targets == 0) | (targets == 1)).all())
