"""All accesses to data that a training makes by itself, as its configuration states them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpmodel.config.card import AccessKind, Cover
    from dpmodel.config.schema import Config

#: Callbacks that choose by what was measured on the evaluation data.
_CHOOSERS = ("EarlyStopping", "ModelCheckpoint")


@dataclass(frozen=True)
class DataAccess:
    """An access to data.

    Args:
        kind: What it was for.
        description: In words.
        privacy: ``"charged"``, ``"public"`` or ``"not accounted"``.
        source: Who states it: ``"dpmodel"`` or ``"declared"``.
    """

    kind: AccessKind
    description: str
    privacy: Cover
    source: str = "dpmodel"

    def to_dict(self) -> dict[str, str]:
        """Plain JSON values."""
        return asdict(self)


def configured_accesses(config: Config) -> tuple[DataAccess, ...]:
    """The accesses that a configuration names; tuning and other work on the same data cannot be seen.

    Example:
        >>> from dpmodel.config import make_config
        >>> config = make_config({
        ...     "network": "lenet5", "optimizer": "SGD", "privacy": {"noise_multiplier": 1},
        ...     "training": {"epochs": 1, "batch_size": 8}})
        >>> [(each.kind, each.privacy) for each in configured_accesses(config)]
        [('validation', 'not accounted')]
    """
    return (*_of_statistics(config), *_of_evaluation(config), *_of_pretrained(config))


def run_accesses(callbacks: Iterable[str]) -> tuple[DataAccess, ...]:
    """The accesses of a training in Python with validation data, from the names of its callbacks.

    Example:
        >>> [each.kind for each in run_accesses(["LossMonitor", "EarlyStopping"])]
        ['validation', 'early_stopping']
    """
    of = "the validation data"
    measured = DataAccess("validation", f"metrics of {of} after each epoch, without noise", "not accounted")
    return (measured, *_choices(callbacks, of))


def _choices(callbacks: Iterable[str], of: str) -> list[DataAccess]:
    choosers = dict.fromkeys(name for name in callbacks if name in _CHOOSERS)
    if not choosers:
        return []
    return [DataAccess("early_stopping", f"{' and '.join(choosers)}, by metrics of {of}", "not accounted")]


def _of_statistics(config: Config) -> list[DataAccess]:
    found = []
    if config.normalise is not None:
        found.append(DataAccess("statistics", "private mean and variance of the inputs (normalise)", "charged"))
    if config.privacy.spent:
        number = len(config.privacy.spent)
        found.append(DataAccess("statistics", f"earlier releases on {number} ledgers (privacy.spent)", "charged"))
    constants = [name for name in ("mean", "std") if config.data.options.get(name) is not None]
    if constants:
        names = " and ".join(f"data.{name}" for name in constants)
        found.append(DataAccess("statistics", f"{names}, stated as public constants", "public"))
    return found


def _of_evaluation(config: Config) -> list[DataAccess]:
    held_back = config.data.validation
    of = f"{held_back:,} examples held back from the training data" if held_back else "the test examples"
    metrics = ", ".join(config.training.metrics)
    found = [DataAccess("validation", f"{metrics} of {of} after each epoch, without noise", "not accounted")]
    return found + _choices([one.name for one in config.callbacks], of)


def _of_pretrained(config: Config) -> list[DataAccess]:
    features, options = config.features, config.network.options
    found = []
    if features is not None and features.name != "scattering":
        what = f"features by {features.name!r}, which must not have been trained on the private data"
        found.append(DataAccess("pretrained", what, "public"))
    named = [key for key in ("weights", "pretrained") if options.get(key)]
    if named:
        found.append(DataAccess("pretrained", f"network.{named[0]}: {options[named[0]]}", "not accounted"))
    return found
