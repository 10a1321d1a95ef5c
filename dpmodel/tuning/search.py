"""Turns a tuning file into a checked search, and drawn values into training configurations."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpmodel.compare.base import read_base, read_marked
from dpmodel.config.faults import config_error
from dpmodel.config.kinds import require_kind
from dpmodel.config.marked_yaml import Marked
from dpmodel.config.overrides import apply_overrides
from dpmodel.config.reader import checked_config
from dpmodel.config.schema import Config, place_of
from dpmodel.planning.spent_ledgers import refuse_spent
from dpmodel.tuning.charge import CHARGES, Charge
from dpmodel.tuning.definition import FieldSection, TuningDefinition
from monitors import checks
from monitors.errors import ConfigError

RUNS = Path("runs")
_NEVER = 10**9

#: What the card of each run declares: it states the epsilon of that run, and the run was chosen among others.
_ONE_OF_SEVERAL = {
    "kind": "tuning",
    "description": "a run of a search; the report of the search (tuning.md) states what all runs spend together",
    "privacy": "not accounted",
}

#: Settings that cannot be searched, and why.
_NOT_SEARCHED = {
    "privacy.target_epsilon": "it is the epsilon of the whole search",
    "privacy.noise_multiplier": "it is calibrated, or set by the base",
    "privacy.delta": "epsilons at different deltas cannot be added",
    "privacy.accountant": "all runs share it; set accountant",
    "output": "the search chooses the folders of its runs",
    "performance": "it does not change any result",
}


@dataclass(frozen=True)
class Tuning:
    """A checked search.

    Args:
        name: Its name.
        definition: Contents of the file.
        base: The settings that drawn values override.
        source: The file, for errors.
        places: Path of each searched field to the place where the file lists it.
    """

    name: str
    definition: TuningDefinition
    base: Marked
    source: str
    places: Mapping[str, str] = field(default_factory=dict)

    @property
    def charge(self) -> Charge:
        """How the search is charged."""
        charge: Charge = CHARGES.create(self.definition.charge)
        return charge

    @property
    def directory(self) -> Path:
        """Folder of the search."""
        return Path(self.definition.output) if self.definition.output else RUNS / self.name

    def draw(self, generator: random.Random) -> dict[str, Any]:
        """Draw a value for every searched field."""
        return {path: field.draw(generator) for path, field in self.definition.search.items()}

    def config(self, values: Mapping[str, Any] | None = None) -> Config:
        """The configuration of one run.

        Raises:
            ConfigError: A value is wrong; with file and line.
        """
        drawn = self.base
        for path, value in (values or {}).items():
            drawn = apply_overrides(drawn, [(tuple(path.split(".")), value)], self.places.get(path))
        # The monitor is not a setting of the user, so errors name the enclosing section.
        section = place_of(self.base.marks, ("privacy",), self.source)
        quiet = apply_overrides(drawn, [(("privacy", "monitor"), {"per_print_times": _NEVER})], section)
        declared = [access.model_dump() for access in checked_config(quiet, self.source).card.accesses]
        final = apply_overrides(quiet, [(("card", "accesses"), [*declared, _ONE_OF_SEVERAL])], section)
        config = checked_config(final, self.source)
        refuse_spent(config, "a search")
        return config

    def ends(self) -> list[Config]:
        """Two configurations: one with the first value (or low end) of every field, one with the last (or high end).

        Raises:
            ConfigError: A value is wrong; with file and line.
        """
        searched = self.definition.search.items()
        return [self.config({name: _end(values, index) for name, values in searched}) for index in (0, -1)]


def load_tuning(path: str | os.PathLike[str], overrides: Iterable[str] = (), **changes: Any) -> Tuning:
    """Read and check a tuning file.

    Args:
        path: YAML file.
        overrides: ``"path.to.key=value"`` applied to the base.
        **changes: Fields of the search itself that replace those of the file.

    Raises:
        ConfigError: The file or the base is invalid; the message names file and line.
    """
    return _checked(read_marked(Path(path)), Path(path), overrides, changes)


def make_tuning(values: Mapping[str, Any], name: str = "tuning") -> Tuning:
    """A search from plain values.

    Example:
        >>> training = {"network": "linear", "optimizer": "SGD", "privacy": {"target_epsilon": 3.0},
        ...             "training": {"epochs": 1, "batch_size": 8}}
        >>> tuning = make_tuning({"base": training, "runs": 5, "search": {"optimizer.lr": {"values": [0.1, 1.0]}}})
        >>> tuning.config({"optimizer.lr": 0.1}).optimizer.options
        {'lr': 0.1}
    """
    return _checked(Marked(dict(values)), Path(name), (), {})


def _checked(marked: Marked, path: Path, overrides: Iterable[str], changes: Mapping[str, Any]) -> Tuning:
    source = str(path)
    if not isinstance(marked.values, dict):
        raise ConfigError(f"{source}: a search is a mapping of keys, got {type(marked.values).__name__}")
    require_kind("search", marked.values, source)
    final = apply_overrides(marked, [((key,), value) for key, value in changes.items() if value is not None])
    try:
        definition = TuningDefinition.model_validate(final.values)
    except ValidationError as error:
        raise config_error(error, final.marks, source, TuningDefinition) from None
    base = apply_overrides(read_base(final, path), overrides)
    if definition.accountant is not None:
        base = apply_overrides(base, [(("privacy", "accountant"), definition.accountant)])
    places = {name: place_of(final.marks, ("search", name), source) for name in definition.search}
    tuning = Tuning(path.stem, definition, base, source, places)
    _require_searchable(tuning)
    config = tuning.config()
    _require_base(tuning, config, final)
    tuning.ends()
    return tuning


def _end(section: FieldSection, index: int) -> Any:
    return section.values[index] if section.values is not None else (section.low, section.high)[index]


def _require_searchable(tuning: Tuning) -> None:
    for path in tuning.definition.search:
        place = tuning.places[path]
        for known, reason in _NOT_SEARCHED.items():
            if path == known or path.startswith(f"{known}."):
                raise ConfigError(f"{place}: search: {path} cannot be searched: {reason}")
        reason_of_charge = tuning.charge.forbidden(path)
        if reason_of_charge is not None:
            # A misspelt setting is refused as unknown, not because of the charge.
            tuning.config({path: _end(tuning.definition.search[path], 0)})
            raise ConfigError(f"{place}: search: {path} cannot be searched: {reason_of_charge}")


def _require_base(tuning: Tuning, config: Config, marked: Marked) -> None:
    if config.privacy.noise is None:
        raise ConfigError(
            f"{config.where('privacy.noise')}: the base has no noise, so the search has no finite epsilon; set "
            "privacy.noise"
        )
    refused = tuning.charge.refuse_accountant(config.privacy.accountant)
    if refused is not None:
        raise ConfigError(f"{config.where('privacy.accountant')}: privacy.accountant: {refused}")
    metric, known = tuning.definition.metric, config.training.metrics
    if metric not in known:
        hint = checks.nearest_hint(metric, known) or ";"
        raise ConfigError(
            f"{place_of(marked.marks, ('metric',), tuning.source)}: metric: {metric!r} is not among training.metrics "
            f"of the base{hint} they are {', '.join(known)}. Set metric: {known[0]}"
        )
