"""All accesses to data that a training makes by itself, as its configuration states them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpmodel.config.card import AccessKind, Cover

#: Callbacks that choose by what was measured on the evaluation data.
_CHOOSERS = ("EarlyStopping", "ModelCheckpoint")


@dataclass(frozen=True)
class DataAccess:
    """An access to data.

    Args:
        kind: What it was for.
        description: In words.
        privacy: ``"charged"``, ``"public"`` or ``"not accounted"``.
        source: Origin of the statement, ``"dpmodel"`` or ``"declared"``.
    """

    kind: AccessKind
    description: str
    privacy: Cover
    source: str = "dpmodel"

    def to_dict(self) -> dict[str, str]:
        """Plain JSON values."""
        return asdict(self)


def configured_accesses(settings: Mapping[str, Any]) -> tuple[DataAccess, ...]:
    """The accesses that a configuration names; tuning and other work on the same data cannot be seen.

    Args:
        settings: The settings as plain values, with every default (``config.model_dump()``).

    Example:
        >>> from dpmodel.config import make_config
        >>> config = make_config({
        ...     "network": "lenet5", "optimizer": "SGD", "privacy": {"noise_multiplier": 1},
        ...     "training": {"epochs": 1, "batch_size": 8}})
        >>> [(each.kind, each.privacy) for each in configured_accesses(config.model_dump())]
        [('validation', 'not accounted')]
    """
    data, network, features = settings["data"], settings["network"], settings["features"] or {}
    constants = [f"data.{name}" for name in ("mean", "std") if data.get(name) is not None]
    weights = [f"network.{key}: {network[key]}" for key in ("weights", "pretrained") if network.get(key)]
    held = data["validation"]
    of = f"{held:,} examples held back from the training data" if held else "the test examples"
    return (
        *_of_statistics(settings["normalise"], len(settings["privacy"]["spent"]), constants),
        _measured(", ".join(settings["training"]["metrics"]), of),
        *_choices([one["name"] for one in settings["callbacks"]], of),
        *_of_pretrained(features.get("name"), weights),
    )


def run_accesses(callbacks: Iterable[str]) -> tuple[DataAccess, ...]:
    """The accesses of a training in Python with validation data, from the names of its callbacks.

    Example:
        >>> [each.kind for each in run_accesses(["LossMonitor", "EarlyStopping"])]
        ['validation', 'early_stopping']
    """
    of = "the validation data"
    return (_measured("metrics", of), *_choices(callbacks, of))


def _measured(metrics: str, of: str) -> DataAccess:
    return DataAccess("validation", f"{metrics} of {of} after each epoch, without noise", "not accounted")


def _choices(callbacks: Iterable[str], of: str) -> list[DataAccess]:
    choosers = dict.fromkeys(name for name in callbacks if name in _CHOOSERS)
    if not choosers:
        return []
    return [DataAccess("early_stopping", f"{' and '.join(choosers)}, by metrics of {of}", "not accounted")]


def _of_statistics(normalised: Mapping[str, Any] | None, ledgers: int, constants: list[str]) -> list[DataAccess]:
    found = []
    if normalised is not None:
        what = "mean, variance and correlation" if normalised.get("whitening") else "mean and variance"
        found.append(DataAccess("statistics", f"private {what} of the inputs (normalise)", "charged"))
    if ledgers:
        found.append(DataAccess("statistics", f"earlier releases on {ledgers} ledgers (privacy.spent)", "charged"))
    if constants:
        stated = f"{' and '.join(constants)}, stated as public constants"
        found.append(DataAccess("statistics", stated, "public"))
    return found


def _of_pretrained(features: str | None, weights: list[str]) -> list[DataAccess]:
    found = []
    if features not in (None, "scattering"):
        what = f"features by {features!r}, which must not have been trained on the private data"
        found.append(DataAccess("pretrained", what, "public"))
    return found + [DataAccess("pretrained", named, "not accounted") for named in weights]
