"""What a tuning file says: base, the fields to search, how many runs, and how the search is charged."""

from __future__ import annotations

import math
import random
from typing import Annotated, Any

from pydantic import Field, model_validator

from dpmodel.config.fields import FromList, PositiveInt, Section
from monitors import checks


class FieldSection(Section):
    """The values that one field may take: a list, or a range.

    Args:
        values: Drawn from evenly.
        low: Lower end of a range.
        high: Upper end of it.
        scale: ``"linear"`` or ``"log"``: where the range is even.

    Example:
        >>> FieldSection.model_validate({"low": 0.1, "high": 0.1 + 1e-12, "scale": "log"}).draw(random.Random(1)) < 0.11
        True
    """

    values: Annotated[tuple[Any, ...] | None, FromList] = None
    low: float | None = None
    high: float | None = None
    scale: str = "linear"

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
        """One value."""
        if self.values is not None:
            return generator.choice(self.values)
        assert self.low is not None
        assert self.high is not None
        if self.scale == "log":
            return math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return generator.uniform(self.low, self.high)


class TuningDefinition(Section):
    """A search as YAML describes it; see ``docs/comparing.md``.

    Args:
        base: Path of a training configuration, relative to the tuning file, or the configuration itself. Its
            ``privacy.target_epsilon`` is what the whole search spends.
        search: Values by the path of a field.
        runs: How many trainings; under ``charge: random`` the mean of their random number.
        charge: ``"random"``: the number of runs is drawn and kept secret, and only the best one may be published
            (Papernot and Steinke 2022). ``"all"``: every run is charged in full, all may be published. ``"none"``:
            every run is charged by itself, the search is NOT accounted.
        accountant: Which accountant solves and states; default: that of the base. ``"random"`` needs ``"rdp"``.
        metric: The test metric of the last epoch that decides.
        output: The folder; default ``runs/<name of the file>``.
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
            raise ValueError(f"runs must be at least 2 under charge 'random', got {self.runs!r}: one run is no search")
        return self
