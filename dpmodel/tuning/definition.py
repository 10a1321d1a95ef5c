"""Contents of a tuning file: base, fields to search, number of runs, and how the search is charged."""

from __future__ import annotations

import math
import random
from typing import Annotated, Any

from pydantic import Field, model_validator

from dpmodel.config.fields import FromList, PositiveInt, Section
from monitors import checks


class FieldSection(Section):
    """The values that one field may take: a list or a range.

    A list alone stands for ``{"values": [...]}``.

    Args:
        values: List to draw from uniformly.
        low: Lower end of a range.
        high: Upper end of the range.
        scale: ``"linear"`` or ``"log"``: the scale on which the range is uniform.

    Example:
        >>> FieldSection.model_validate({"low": 0.1, "high": 0.1 + 1e-12, "scale": "log"}).draw(random.Random(1)) < 0.11
        True
    """

    values: Annotated[tuple[Any, ...] | None, FromList] = None
    low: float | None = None
    high: float | None = None
    scale: str = "linear"

    @model_validator(mode="before")
    @classmethod
    def _of_a_list(cls, given: Any) -> Any:
        return {"values": given} if isinstance(given, (list, tuple)) else given

    @model_validator(mode="after")
    def _one_kind(self) -> FieldSection:
        checks.one_of(("linear", "log"), scale=self.scale)
        ranged = self.low is not None or self.high is not None
        if (self.values is None) != ranged:
            raise ValueError("give either values: [...], or low and high")
        if self.values is not None and not self.values:
            raise ValueError("values must hold at least one entry, got []")
        if ranged and (self.low is None or self.high is None or not self.low < self.high):
            raise ValueError(f"low must be below high, got low={self.low!r} and high={self.high!r}")
        if ranged and self.scale == "log" and (self.low or 0.0) <= 0:
            raise ValueError(f"a log scale needs low above 0, got {self.low!r}")
        return self

    def draw(self, generator: random.Random) -> Any:
        """Draw one value."""
        if self.values is not None:
            return generator.choice(self.values)
        assert self.low is not None
        assert self.high is not None
        if self.scale == "log":
            return math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return generator.uniform(self.low, self.high)


class TuningDefinition(Section):
    """A search; see ``docs/comparing.md``.

    Args:
        base: Path of a training configuration, relative to the tuning file, or the configuration itself. Its
            ``privacy.target_epsilon`` is the epsilon of the whole search.
        search: Path of a field to the values that it may take.
        runs: Number of trainings; with ``charge: random``, the mean of their random number.
        charge: ``"random"``: the number of runs is random and secret, and only the best run may be published (Papernot
            and Steinke 2022). ``"all"``: every run is charged in full, and all may be published. ``"none"``: epsilon
            covers each run alone, and the search is NOT accounted.
        accountant: The accountant; default: that of the base. ``charge: random`` needs ``"rdp"``.
        metric: The test metric, after the last epoch, that decides which run is best.
        output: The search folder; default: ``runs/<name of the file>``.
    """

    base: str | dict[str, Any]
    search: dict[str, FieldSection] = Field(min_length=1)
    runs: PositiveInt
    charge: str = "random"
    accountant: str | None = None
    metric: str = "accuracy"
    output: str | None = None

    @model_validator(mode="after")
    def _known_charge(self) -> TuningDefinition:
        from dpmodel.tuning.charge import CHARGES

        checks.one_of(CHARGES.names(), charge=self.charge)
        if self.charge == "random" and self.runs < 2:
            raise ValueError(f"runs must be at least 2 with charge 'random', got {self.runs!r}")
        return self
