"""Turns a comparison file into one checked training configuration per variant, without training or reading data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from dpmodel.compare.base import marks_below, read_base, read_marked
from dpmodel.compare.definition import ComparisonDefinition, VariantSection
from dpmodel.compare.search import Search, make_search
from dpmodel.config.faults import config_error
from dpmodel.config.marked_yaml import Marked
from dpmodel.config.marked_yaml import Path as Keys
from dpmodel.config.overrides import apply_overrides, parse_override
from dpmodel.config.reader import checked_config
from dpmodel.config.schema import Config, place_of
from dpmodel.planning.spent_ledgers import refuse_spent
from monitors import checks
from monitors.errors import ConfigError

RUNS = Path("runs")

#: Path in the training configuration -> where the value was written, and the value.
_Settings = dict[tuple[str, ...], tuple[Keys, Any]]

#: Settings that are stated once for all variants -> where they are stated.
_STATED_ONCE = {
    "privacy.target_epsilon": "target.epsilon",
    "privacy.noise_multiplier": "target.epsilon, to which the multiplier is calibrated",
    "privacy.delta": "target.delta",
    "privacy.accountant": "target.accountant",
    "training.seed": "seeds",
    "output.directory": "output",
}

#: Sections in which ``tune`` searches, and settings there that no training depends on or that void its guarantee.
SEARCHED = ("network", "loss", "optimizer", "privacy", "training", "callbacks")
NOT_SEARCHED = ("privacy.monitor", "privacy.sampling_seed", "training.metrics")

#: Sections that a variant may replace entirely.
_WHOLE = frozenset({"features", "network", "loss", "optimizer", "callbacks"})

#: Printing monitors would recompute epsilon for lines that nobody sees.
_NEVER = 10**9


@dataclass(frozen=True)
class Variant:
    """One variant of the training.

    Args:
        name: Its name.
        slug: Name of its folder.
        config: Its configuration, with the target epsilon of the comparison.
        tuned: The values that it chose in a search, by path.
    """

    name: str
    slug: str
    config: Config
    tuned: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A checked comparison.

    Args:
        name: Its name, for headings and the default folder.
        definition: Contents of the file.
        variants: The variants, in the order of the file.
        search: The search by which they choose some of their settings first; None: there is none.
    """

    name: str
    definition: ComparisonDefinition
    variants: tuple[Variant, ...]
    search: Search | None = None

    @property
    def directory(self) -> Path:
        """Folder of the comparison."""
        return Path(self.definition.output) if self.definition.output else RUNS / self.name


def load_comparison(path: str | os.PathLike[str], overrides: Iterable[str] = (), **changes: Any) -> Comparison:
    """Read and check a comparison file.

    Args:
        path: YAML file.
        overrides: ``"path.to.key=value"`` applied to the base of all variants, as with ``dpmodel train --set``.
        **changes: Fields of the comparison itself that replace those of the file (``seeds=[1]``, ``target={...}``).

    Raises:
        ConfigError: The file, the base or a variant is invalid; the message names file and line.
    """
    return _checked(read_marked(Path(path)), Path(path), overrides, changes)


def make_comparison(values: Mapping[str, Any], name: str = "comparison") -> Comparison:
    """A comparison from plain values; if ``base`` is a path, it is relative to the current folder.

    Example:
        >>> training = {"network": "linear", "optimizer": "SGD", "privacy": {"noise_multiplier": 1},
        ...             "training": {"epochs": 1, "batch_size": 8}}
        >>> comparison = make_comparison({
        ...     "base": training, "target": {"epsilon": 3.0}, "seeds": [1, 2],
        ...     "variants": [{"name": "fixed"}, {"name": "wide", "set": {"privacy.norm_bound": 0.2}}]})
        >>> [variant.config.privacy.norm_bound for variant in comparison.variants]
        [1.0, 0.2]
    """
    return _checked(Marked(dict(values)), Path(name), (), {})


def stated_target(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The target as stated in a comparison file, unchecked; empty if it states none."""
    values = read_marked(Path(path)).values
    target = values.get("target") if isinstance(values, dict) else None
    return dict(target) if isinstance(target, dict) else {}


def _checked(marked: Marked, path: Path, overrides: Iterable[str], changes: Mapping[str, Any]) -> Comparison:
    source = str(path)
    if not isinstance(marked.values, dict):
        raise ConfigError(f"{source}: a comparison is a mapping of keys, got {type(marked.values).__name__}")
    final = apply_overrides(marked, [((key,), value) for key, value in changes.items() if value is not None])
    try:
        definition = ComparisonDefinition.model_validate(final.values)
    except ValidationError as error:
        raise config_error(error, final.marks, source, ComparisonDefinition) from None
    _require_distinct(definition, final, source)
    _require_searchable(definition, final, source)
    overrides = tuple(overrides)
    _require_unstated(overrides)
    base = apply_overrides(read_base(final, path), overrides)
    variants = tuple(
        Variant(section.name, section.slug, _variant_config(base, definition, final, index, source))
        for index, section in enumerate(definition.variants)
    )
    _require_equal_data(variants, source)
    for variant in variants:
        refuse_spent(variant.config, "a comparison")
    comparison = Comparison(path.stem, definition, variants)

    def configured(section: VariantSection, values: Mapping[str, Any]) -> Config:
        return _variant_config(base, definition, final, definition.variants.index(section), source, values)

    search = make_search(comparison, configured, place_of(final.marks, ("tune",), source))
    return replace(comparison, search=search)


def _require_unstated(overrides: Iterable[str]) -> None:
    for override in overrides:
        keys, _ = parse_override(override)
        stated = _STATED_ONCE.get(".".join(keys[:2]))
        if stated is not None:
            raise ConfigError(
                f"--set {override}: the comparison sets {'.'.join(keys)} once for all variants, by {stated}"
            )


def _require_distinct(definition: ComparisonDefinition, marked: Marked, source: str) -> None:
    seen: dict[str, str] = {}
    for index, variant in enumerate(definition.variants):
        place = place_of(marked.marks, ("variants", index, "name"), source)
        if variant.slug in seen:
            raise ConfigError(
                f"{place}: variants.{index}.name: {variant.name!r} is already the name of a variant "
                f"({seen[variant.slug]}); names must differ in more than case and spaces"
            )
        seen[variant.slug] = place
    _require_each_once(definition.seeds, ("seeds",), marked, source)
    if definition.tune is not None:
        _require_each_once(definition.tune.seeds, ("tune", "seeds"), marked, source)
    names = [variant.name for variant in definition.variants]
    if definition.baseline_name not in names:
        hint = checks.nearest_hint(definition.baseline_name, names) or ";"
        raise ConfigError(
            f"{place_of(marked.marks, ('baseline',), source)}: baseline: there is no variant "
            f"{definition.baseline_name!r}{hint} variants: {', '.join(names)}"
        )


def _require_each_once(seeds: Sequence[int], written: Keys, marked: Marked, source: str) -> None:
    repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if repeated:
        raise ConfigError(
            f"{place_of(marked.marks, written, source)}: {'.'.join(map(str, written))}: {repeated[0]} is given twice; "
            "remove one, because counting the same initial weights twice would make a mean look more certain than it is"
        )


def _variant_config(
    base: Marked,
    definition: ComparisonDefinition,
    marked: Marked,
    index: int,
    source: str,
    searched: Mapping[str, Any] = MappingProxyType({}),
) -> Config:
    section = definition.variants[index]
    given = _settings(section.set, ("variants", index, "set"))
    _require_free(f"variant {section.name!r} sets", given, marked, source)
    tried = _settings(searched, ("tune", "search"))
    settings: _Settings = {**given, **tried, **_common(definition)}
    final = apply_overrides(base, [(keys, value) for keys, (_, value) in settings.items()])
    marks = dict(final.marks)
    for keys, (written, _) in settings.items():
        marks[keys] = place_of(marked.marks, written, source)
        marks |= {(*keys, *inside): place for inside, place in marks_below(marked.marks, written).items()}
    _require_noise(Marked(final.values, marks), section, source)
    config = checked_config(Marked(final.values, marks), source)
    _require_metric(config, definition, marked, source)
    return config


def _settings(values: Mapping[str, Any], written: Keys) -> _Settings:
    return {tuple(path.split(".")): ((*written, path), value) for path, value in values.items()}


def _require_searchable(definition: ComparisonDefinition, marked: Marked, source: str) -> None:
    """Refuse a search that varies what is stated once, what a variant states itself, or what changes no training."""
    search = {} if definition.tune is None else definition.tune.search
    _require_free("tune searches", _settings(search, ("tune", "search")), marked, source)
    for path in search:
        place = place_of(marked.marks, ("tune", "search", path), source)
        if path.split(".")[0] not in SEARCHED or path in NOT_SEARCHED:
            raise ConfigError(
                f"{place}: tune searches {path}; it can search settings of {', '.join(SEARCHED)} that the training "
                f"depends on, and not {', '.join(NOT_SEARCHED)}"
            )
        others = {f"variant {section.name!r} sets": section.set for section in definition.variants}
        for subject, paths in (*others.items(), ("it also searches", set(search) - {path})):
            for other in paths:
                if _overlap(path, other):
                    raise ConfigError(
                        f"{place}: tune searches {path}, but {subject} {other}, and one would replace the other; "
                        "remove one of the two"
                    )


def _overlap(one: str, other: str) -> bool:
    """Whether one path is the other or leads to it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _require_equal_data(variants: Sequence[Variant], source: str) -> None:
    held_out = {variant.config.data.validation: variant for variant in variants}
    if len(held_out) > 1:
        one, other = list(held_out.values())[:2]
        raise ConfigError(
            f"{source}: data.validation is {one.config.data.validation} in variant {one.name!r} but "
            f"{other.config.data.validation} in {other.name!r}, so they would be measured on different examples; give "
            "all variants the same"
        )


def _common(definition: ComparisonDefinition) -> _Settings:
    """Settings that all variants share, with the place where each was written and its value."""
    target = definition.target
    return {
        ("privacy", "target_epsilon"): (("target", "epsilon"), target.epsilon),
        ("privacy", "noise_multiplier"): (("target", "epsilon"), None),
        ("privacy", "delta"): (("target", "delta"), target.delta),
        ("privacy", "accountant"): (("target", "accountant"), target.accountant),
        ("privacy", "monitor"): (("target",), {"per_print_times": _NEVER}),
        ("training", "seed"): (("seeds",), definition.seeds[0]),
        ("output", "directory"): (("output",), None),
    }


def _require_free(subject: str, given: _Settings, marked: Marked, source: str) -> None:
    for keys, (written, _) in given.items():
        path, place = ".".join(keys), place_of(marked.marks, written, source)
        if (len(keys) < 2 and path not in _WHOLE) or not all(keys):
            raise ConfigError(f"{place}: {subject} {path!r}; use section.key, such as privacy.norm_bound")
        stated = _STATED_ONCE.get(".".join(keys[:2]))
        if stated is not None:
            raise ConfigError(f"{place}: {subject} {path}, which is set once for all variants, by {stated}")


def _require_noise(settings: Marked, section: VariantSection, source: str) -> None:
    privacy = settings.values.get("privacy")
    if isinstance(privacy, dict) and privacy.get("noise", section) is None:
        raise ConfigError(
            f"{place_of(settings.marks, ('privacy', 'noise'), source)}: variant {section.name!r} has no noise, so its "
            "epsilon is infinite and cannot equal the target; train a baseline without privacy with `dpmodel train`"
        )


def _require_metric(config: Config, definition: ComparisonDefinition, marked: Marked, source: str) -> None:
    known = config.training.metrics
    if definition.metric not in known:
        hint = checks.nearest_hint(definition.metric, known) or ";"
        raise ConfigError(
            f"{place_of(marked.marks, ('metric',), source)}: metric: {definition.metric!r} is not among "
            f"training.metrics of the base{hint} they are {', '.join(known)}. Set metric: {known[0]}"
        )
