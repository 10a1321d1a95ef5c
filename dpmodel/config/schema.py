"""The complete configuration of a training, checked and frozen."""

from __future__ import annotations

from typing import Annotated, Any

import yaml
from pydantic import PrivateAttr, model_validator

from dpmodel.config.card import CardSection
from dpmodel.config.fields import FromList, Section
from dpmodel.config.marked_yaml import Path
from dpmodel.config.privacy import PrivacySection
from dpmodel.config.sections import (
    AugmentationSection,
    CallbackSection,
    DataSection,
    FeaturesSection,
    LossSection,
    NetworkSection,
    NormaliseSection,
    OptimizerSection,
    OutputSection,
    PerformanceSection,
    TrainingSection,
)


class Config(Section):
    """The configuration of a training; see ``docs/config.md``.

    Args:
        plugins: Module names, or paths of ``.py`` files relative to the configuration. They are imported first, so that
            the mechanisms, data sets and networks that they register can be used by name. Plugins run code.
        data: The data set.
        features: Fixed features that replace the inputs of the data set; null trains on the inputs.
        normalise: Private normalisation of the inputs or features; null trains on them as they are.
        augmentation: Random augmentation of the training examples; null trains on them as they are.
        network: The network.
        loss: The loss.
        optimizer: The optimizer and its learning-rate schedule.
        privacy: Settings that affect privacy.
        performance: Settings that affect only speed and memory.
        training: Epochs, batch size, seed of the initial weights, metrics.
        callbacks: Additional callbacks.
        output: Which files are written.
        card: What the privacy card states on the user's word.

    Example:
        >>> config = Config.model_validate({
        ...     "network": {"name": "lenet5"}, "optimizer": {"name": "SGD", "lr": 1.0},
        ...     "privacy": {"noise_multiplier": 1.5}, "training": {"epochs": 1, "batch_size": 256}})
        >>> config.privacy.delta
        1e-05
    """

    plugins: Annotated[tuple[str, ...], FromList] = ()
    data: DataSection = DataSection()
    features: FeaturesSection | None = None
    normalise: NormaliseSection | None = None
    augmentation: AugmentationSection | None = None
    network: NetworkSection
    loss: LossSection = LossSection()
    optimizer: OptimizerSection
    privacy: PrivacySection
    performance: PerformanceSection = PerformanceSection()
    training: TrainingSection
    callbacks: Annotated[tuple[CallbackSection, ...], FromList] = ()
    output: OutputSection = OutputSection()
    card: CardSection = CardSection()

    _source: str = PrivateAttr(default="configuration")
    _marks: dict[Path, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _only_the_stated_size(self) -> Config:
        stated = self.privacy.num_examples_public
        if stated is not None and self.data.num_examples is not None:
            raise ValueError(
                f"data.num_examples={self.data.num_examples} states the true number of rows, but "
                f"privacy.num_examples_public={stated} keeps it private; give one of them"
            )
        if stated is not None and self.data.rows_by_position:
            name, value = next(iter(self.data.rows_by_position.items()))
            raise ValueError(
                f"{name}={value} chooses rows by a permutation of all rows, so a single row more would exchange many "
                f"of the chosen ones, but privacy.num_examples_public={stated} keeps the number of rows private; "
                f"remove one of them. A data set of your own may hold a part of the rows, if a rule that sees each row "
                "alone chose them"
            )
        if stated is not None and self.normalise is not None:
            raise ValueError(
                "normalise divides its private mean and variance by the true number of rows, which "
                f"privacy.num_examples_public={stated} keeps private; remove one of them, or normalise with public "
                "constants (data.mean, data.std)"
            )
        return self

    @property
    def source(self) -> str:
        """Where the configuration was read from."""
        return self._source

    def where(self, path: str) -> str:
        """File and line of ``"section.key"``, or of the nearest enclosing section that was written."""
        return place_of(self._marks, _keys(path), self._source)

    def changes(self, path: str) -> list[tuple[Any, Any, str]]:
        """Key, value and place of each setting inside ``"section.key"`` that does not come from the section's file."""
        top = _keys(path)
        source = self._marks.get(top, "").rpartition(":")[0]
        if not source:
            return []
        inside = {
            known: place for known, place in self._marks.items() if len(known) > len(top) and known[: len(top)] == top
        }
        values = self.model_dump()
        return [
            (known[-1], _value_at(values, known), place)
            for known, place in inside.items()
            if place.rpartition(":")[0] != source
        ]

    def to_yaml(self) -> str:
        """The configuration as YAML with all defaults; reading it back gives an equal configuration."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def _keys(path: str) -> tuple[Any, ...]:
    return tuple(int(key) if key.isdecimal() else key for key in path.split("."))


def _value_at(values: Any, path: Path) -> Any:
    """The value at ``path``; None if a copy of the configuration has a different section there."""
    try:
        for key in path:
            values = values[key]
    except (KeyError, IndexError, TypeError):
        return None
    return values


def place_of(marks: dict[Path, str], path: Path, source: str) -> str:
    """Where ``path`` or something inside it was written, or else its nearest ancestor, or else the source."""
    inside = (place for known, place in marks.items() if known[: len(path)] == path)
    if path and path not in marks and (found := next(inside, None)) is not None:
        return found
    for length in range(len(path), 0, -1):
        if path[:length] in marks:
            return marks[path[:length]]
    return source
