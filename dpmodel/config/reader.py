"""Reads a YAML file and command-line overrides into a checked ``Config``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpmodel.config.card import CardSection
from dpmodel.config.faults import config_error, faults_in, locating_errors, one_error
from dpmodel.config.kinds import require_kind
from dpmodel.config.marked_yaml import Marked, read_yaml_file
from dpmodel.config.overrides import apply_overrides
from dpmodel.config.paths import CHECKPOINTS, locate_data
from dpmodel.config.plugins import import_plugin, locate_plugin
from dpmodel.config.schema import Config, place_of
from mechanisms.factory import ClipMechanismsFactory, NoiseMechanismsFactory
from mechanisms.sampling import SAMPLERS
from monitors.errors import ConfigError
from monitors.spent import resolve_accountant

Override = str | tuple[Sequence[str], Any]


def load_config(
    path: str | os.PathLike[str], overrides: Iterable[Override] = (), *, import_plugins: bool = True
) -> Config:
    """Read a configuration file.

    Args:
        path: YAML file.
        overrides: Strings ``"path.to.key=value"`` (the value is YAML), or pairs of path and value.
        import_plugins: Import the plugins, and check the names of mechanisms. False runs no code that the file names.

    Raises:
        ConfigError: The file does not exist or is not YAML, or a setting is unknown, missing, out of range or
            contradicts another. The message lists every fault with its line.
    """
    marked = read_yaml_file(path)
    if isinstance(marked.values, dict):
        require_kind("training", marked.values, str(path))
    return checked_config(marked, str(path), overrides, import_plugins=import_plugins)


def make_config(values: Mapping[str, Any], overrides: Iterable[Override] = (), source: str = "configuration") -> Config:
    """A configuration from plain values.

    Example:
        >>> make_config({"network": "lenet5", "optimizer": "SGD", "privacy": {"noise_multiplier": 0.0},
        ...              "training": {"epochs": 1, "batch_size": 8}})
        Traceback (most recent call last):
            ...
        monitors.errors.ConfigError: configuration: privacy.noise_multiplier must be a positive finite number, got 0.0
    """
    return checked_config(Marked(dict(values)), source, overrides)


def checked_config(
    marked: Marked, source: str, overrides: Iterable[Override] = (), *, import_plugins: bool = True
) -> Config:
    """Validate the settings; unless told otherwise, ``require_names`` too."""
    if not isinstance(marked.values, dict):
        raise ConfigError(f"{source}: a configuration is a mapping of sections, got {type(marked.values).__name__}")
    final = apply_overrides(marked, overrides)
    try:
        config = Config.model_validate(final.values)
    except ValidationError as error:
        raise config_error(error, final.marks, source) from None
    config = _located(config, final, source)
    config._source, config._marks = source, final.marks
    if import_plugins:
        require_names(config)
    return config


def _located(config: Config, marked: Marked, source: str) -> Config:
    """The configuration with full paths, so that its resolved form means the same in every folder."""
    plugins = tuple(locate_plugin(plugin, Path(source).parent) for plugin in config.plugins)
    changed: dict[str, Any] = {"plugins": plugins}
    for name, key in (("data", "root"), ("data", "cache"), ("features", "weights")):
        section = changed.get(name, getattr(config, name))
        value = None if section is None else section.options.get(key)
        if isinstance(value, str) and (key == "root" or (key == "cache" and value) or value.endswith(CHECKPOINTS)):
            full = locate_data(value, place_of(marked.marks, (name, key), source), f"{name}.{key}")
            changed[name] = section.model_copy(update={key: full})
    ledgers = tuple(
        locate_data(path, place_of(marked.marks, ("privacy", "spent", index), source), f"privacy.spent.{index}")
        for index, path in enumerate(config.privacy.spent)
    )
    changed["privacy"] = config.privacy.model_copy(update={"spent": ledgers})
    changed["card"] = _located_card(config.card, marked, source)
    return config.model_copy(update=changed)


def declared_card(values: Mapping[str, Any]) -> CardSection:
    """The section ``card`` from plain values, with full paths.

    Raises:
        ConfigError: A value is unknown or wrong.

    Example:
        >>> declared_card({"contributions_per_person": 3}).contributions_per_person
        3
    """
    marked = Marked({"card": dict(values)})
    try:
        card = CardSection.model_validate(dict(values))
    except ValidationError as error:
        raise config_error(error, {}, "card", CardSection) from None
    return _located_card(card, marked, "card")


def _located_card(card: CardSection, marked: Marked, source: str) -> CardSection:
    changed: dict[str, Any] = {}
    if card.audit is not None:
        changed["audit"] = locate_data(card.audit, place_of(marked.marks, ("card", "audit"), source), "card.audit")
    if card.subgroups is not None:
        place = place_of(marked.marks, ("card", "subgroups", "file"), source)
        full = locate_data(card.subgroups.file, place, "card.subgroups.file")
        changed["subgroups"] = card.subgroups.model_copy(update={"file": full})
    return card.model_copy(update=changed)


def require_names(config: Config) -> None:
    """Import the plugins, and check every name that can be checked without torch.

    Raises:
        ConfigError: A plugin cannot be imported, or a name is unknown; with file and line.
    """
    for index, plugin in enumerate(config.plugins):
        with locating_errors(config, f"plugins.{index}"):
            import_plugin(plugin)
    privacy = config.privacy
    checks: dict[str, Callable[[], object]] = {
        "privacy.accountant": partial(resolve_accountant, privacy.accountant),
        "privacy.sampling": partial(SAMPLERS.get, privacy.sampling),
        "privacy.clip.name": partial(ClipMechanismsFactory.registry.get, privacy.clip.name),
    }
    if privacy.noise is not None:
        checks["privacy.noise.name"] = partial(NoiseMechanismsFactory.registry.get, privacy.noise.name)
    faults = faults_in(config, checks)
    if faults:
        # The other names need torch, whose import takes a second; listing all faults at once is worth it.
        from dpmodel.preflight.configured import unknown_names

        raise one_error([*faults, *unknown_names(config)], config.source)
