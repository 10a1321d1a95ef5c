"""The search by which each variant of a comparison chooses some of its settings, on held-out training examples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dpmodel.callbacks.watched_metric import LESS_IS_BETTER, direction
from dpmodel.compare.definition import ComparisonDefinition, VariantSection, is_variant_name
from dpmodel.metrics.names import FRACTIONS
from monitors.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dpmodel.compare.comparison import Comparison, Variant
    from dpmodel.compare.results import ComparisonResult
    from dpmodel.config.schema import Config

#: (section of the variant, values by path) -> its configuration.
Configured = Callable[[VariantSection, Mapping[str, Any]], "Config"]


@dataclass(frozen=True)
class Search:
    """The trainings that decide, and what they decide between.

    Every variant chooses by the same rule: each combination of the searched values is trained at the target epsilon, on
    the training examples without the held-out ones, and the one with the best mean metric on the held-out examples is
    taken. The test examples play no part.

    Args:
        trials: The trainings, as a comparison with one variant for each combination.
        candidates: For each variant of ``trials``, by name, the variant that it is a trial of, with its values.
        sign: 1 if a higher metric is better, -1 if a lower one is.
    """

    trials: Comparison
    candidates: Mapping[str, Variant]
    sign: int

    @property
    def finals(self) -> Comparison:
        """Every training that the comparison may come to, to be checked before anything is trained."""
        named = [replace(variant, name=trial) for trial, variant in self.candidates.items()]
        return replace(self.trials, variants=tuple(named))

    def chosen(self, comparison: Comparison, result: ComparisonResult) -> Comparison:
        """``comparison`` with the values that each variant chooses; ``result`` is that of all trials.

        Raises:
            DataError: No trial of a variant has a finite metric.
        """
        best: dict[str, tuple[float, Variant]] = {}
        for row in result.variants:
            candidate, score = self.candidates[row.name], self.sign * row.summary.mean
            if math.isfinite(score) and (candidate.name not in best or score > best[candidate.name][0]):
                best[candidate.name] = score, candidate
        for variant in comparison.variants:
            if variant.name not in best:
                raise DataError(
                    f"no training of the search of variant {variant.name!r} ended with a finite "
                    f"{self.trials.definition.metric}; add values to tune.search that it can be trained with"
                )
        variants = tuple(best[variant.name][1] for variant in comparison.variants)
        sections = tuple(
            section.model_copy(update={"set": {**section.set, **variant.tuned}})
            for section, variant in zip(comparison.definition.variants, variants, strict=True)
        )
        definition = comparison.definition.model_copy(update={"variants": sections})
        return replace(comparison, definition=definition, variants=variants)


def make_search(comparison: Comparison, configured: Configured, place: str) -> Search | None:
    """The search of a comparison; None if its file has no ``tune``.

    Args:
        comparison: The comparison.
        configured: Checks the configuration of a variant with further values.
        place: Where ``tune`` was written, for errors.

    Raises:
        ConfigError: Two trials have the same name, the base holds examples back itself, or it is not known whether a
            higher metric is better.
    """
    definition = comparison.definition
    tune = definition.tune
    if tune is None:
        return None
    if any(variant.config.data.validation is not None for variant in comparison.variants):
        raise ConfigError(
            f"{place}: tune: the base sets data.validation, so the variants would be compared on the examples on which "
            "their settings were chosen; remove data.validation, which tune sets for its own trainings"
        )
    if tune.mode == "auto" and definition.metric not in FRACTIONS | LESS_IS_BETTER:
        raise ConfigError(
            f"{place}: tune: it is not known whether a higher {definition.metric!r} is better; set tune.mode to max or "
            "min"
        )
    sections: list[VariantSection] = []
    trials: list[Variant] = []
    candidates: dict[str, Variant] = {}
    for section, variant in zip(definition.variants, comparison.variants, strict=True):
        for values in _combinations(tune.search):
            held_out = {**values, **_held_out(tune.validation)}
            name = _name(section.name, tune.search, values)
            trial = VariantSection(name=name, set={**section.set, **held_out})
            if trial.slug in {other.slug for other in sections}:
                raise ConfigError(
                    f"{place}: tune: two trainings of the search would both be called {trial.name!r}; rename the "
                    f"variant {section.name!r}, or remove a value that is given twice"
                )
            sections.append(trial)
            trials.append(replace(variant, name=trial.name, slug=trial.slug, config=configured(section, held_out)))
            candidates[trial.name] = replace(variant, config=configured(section, values), tuned=values)
    changes = {"variants": tuple(sections), "seeds": tune.seeds, "baseline": None, "tune": None, "output": None}
    whole: ComparisonDefinition = definition.model_copy(update=changes)
    searched = replace(comparison, name=f"{comparison.name} (tune)", definition=whole, variants=tuple(trials))
    return Search(searched, candidates, direction(definition.metric, tune.mode))


def _held_out(validation: int) -> dict[str, Any]:
    """Settings of a training that holds examples back; numbers that were stated for the whole data set go."""
    return {"data.validation": validation, "data.num_examples": None, "data.test_limit": None}


def _combinations(search: Mapping[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]


def _name(variant: str, search: Mapping[str, tuple[Any, ...]], values: Mapping[str, Any]) -> str:
    """Name of a trial, with each value, or with its position if it cannot be part of a name.

    Example:
        >>> _name("fixed", {"optimizer.lr": (3.0, 4.5)}, {"optimizer.lr": 4.5})
        'fixed lr 4.5'
        >>> _name("fixed", {"optimizer": ({"name": "SGD"}, {"name": "Adam"})}, {"optimizer": {"name": "Adam"}})
        'fixed optimizer 2'
    """
    words = [variant]
    for path, value in values.items():
        text = str(value)
        words += [path.split(".")[-1], text if is_variant_name(text) else str(search[path].index(value) + 1)]
    return " ".join(words)
