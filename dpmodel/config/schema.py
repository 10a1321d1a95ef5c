"""The whole configuration of a training, checked and frozen."""

from __future__ import annotations

from typing import Annotated, Any

import yaml
from pydantic import PrivateAttr

from dpmodel.config.fields import FromList, Section
from dpmodel.config.marked_yaml import Path
from dpmodel.config.privacy import PrivacySection
from dpmodel.config.sections import (
    CallbackSection,
    DataSection,
    LossSection,
    NetworkSection,
    OptimizerSection,
    OutputSection,
    PerformanceSection,
    TrainingSection,
)


class Config(Section):
    """A training as YAML describes it; see ``docs/config.md``.

    Args:
        plugins: Imported first, so that the mechanisms, data sets and networks they register are known: names of
            modules, or paths of ``.py`` files relative to the configuration.
        data: Which data.
        network: Which network.
        loss: Which loss.
        optimizer: Which optimizer, with its learning-rate schedule.
        privacy: What changes privacy.
        performance: What changes speed only.
        training: Epochs, batch size, seed of the initial weights, metrics.
        callbacks: Further callbacks.
        output: What is left behind.

    Example:
        >>> config = Config.model_validate({
        ...     "network": {"name": "lenet5"}, "optimizer": {"name": "SGD", "lr": 1.0},
        ...     "privacy": {"noise_multiplier": 1.5}, "training": {"epochs": 1, "batch_size": 256}})
        >>> config.privacy.delta
        1e-05
    """

    plugins: Annotated[tuple[str, ...], FromList] = ()
    data: DataSection = DataSection()
    network: NetworkSection
    loss: LossSection = LossSection()
    optimizer: OptimizerSection
    privacy: PrivacySection
    performance: PerformanceSection = PerformanceSection()
    training: TrainingSection
    callbacks: Annotated[tuple[CallbackSection, ...], FromList] = ()
    output: OutputSection = OutputSection()

    _source: str = PrivateAttr(default="configuration")
    _marks: dict[Path, str] = PrivateAttr(default_factory=dict)

    @property
    def source(self) -> str:
        """Where the configuration was read from, in words."""
        return self._source

    def where(self, path: str) -> str:
        """File and line of ``"section.key"``, or of the nearest section above it that was written."""
        return place_of(self._marks, _keys(path), self._source)

    def changes(self, path: str) -> list[tuple[Any, Any, str]]:
        """Key, value and place of each setting inside ``"section.key"`` that was written elsewhere than the section."""
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
        """The configuration as YAML, defaults written out; reading it back gives an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def _keys(path: str) -> tuple[Any, ...]:
    return tuple(int(key) if key.isdigit() else key for key in path.split("."))


def _value_at(values: Any, path: Path) -> Any:
    """The value at ``path``; None where a copy of the configuration has another section in that place."""
    try:
        for key in path:
            values = values[key]
    except (KeyError, IndexError, TypeError):
        return None
    return values


def place_of(marks: dict[Path, str], path: Path, source: str) -> str:
    """Where ``path`` was written, or something inside it; else its nearest ancestor; else the source as a whole."""
    inside = (place for known, place in marks.items() if known[: len(path)] == path)
    if path and path not in marks and (found := next(inside, None)) is not None:
        return found
    for length in range(len(path), 0, -1):
        if path[:length] in marks:
            return marks[path[:length]]
    return source
