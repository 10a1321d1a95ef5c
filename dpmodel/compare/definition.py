"""Contents of a comparison file: base, variants, seeds and the common privacy target."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, model_validator

from dpmodel.config.fields import FromList, NonNegativeInt, OpenUnitFloat, PositiveFloat, Section
from monitors.accountant import DEFAULT_DELTA

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]*")


class TargetSection(Section):
    """The privacy that every run spends.

    Args:
        epsilon: Epsilon of each run.
        delta: Delta of each run.
        accountant: The accountant that calibrates and checks.
    """

    epsilon: PositiveFloat
    delta: OpenUnitFloat = DEFAULT_DELTA
    accountant: str = "pld"


class VariantSection(Section):
    """One variant.

    Args:
        name: Letters, digits, spaces and ``. _ + -``; also used for the name of its folder.
        set: Settings that override the base, by path: ``privacy.noise: {name: AdaGaussian, ...}``.
    """

    name: str
    set: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _usable_as_folder(self) -> VariantSection:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                "name must consist of letters, digits, spaces and . _ + - and begin with a letter or digit, got "
                f"{self.name!r}"
            )
        return self

    @property
    def slug(self) -> str:
        """Name of the variant's folder."""
        return self.name.strip().replace(" ", "-").lower()


class ComparisonDefinition(Section):
    """A comparison; see ``docs/comparing.md``.

    Args:
        base: Path of a training configuration, relative to the comparison file, or the configuration itself.
        target: The privacy that every run spends.
        seeds: Seeds of the initial weights. Each seed is used once with every variant, so that differences are paired.
            Noise and sampling stay secret.
        variants: At least two.
        baseline: The variant that the others are compared with; default: the first.
        metric: The test metric that is compared, after the last epoch.
        output: The comparison folder; default: ``runs/<name of the file>``.

    Example:
        >>> definition = ComparisonDefinition.model_validate({
        ...     "base": "lenet5_mnist.yaml", "target": {"epsilon": 3.0}, "seeds": [1, 2],
        ...     "variants": [{"name": "fixed"}, {"name": "wide", "set": {"privacy.norm_bound": 0.2}}]})
        >>> definition.baseline_name
        'fixed'
    """

    base: str | dict[str, Any]
    target: TargetSection
    seeds: Annotated[tuple[NonNegativeInt, ...], FromList] = Field(min_length=1)
    variants: Annotated[tuple[VariantSection, ...], FromList] = Field(min_length=2)
    baseline: str | None = None
    metric: str = "accuracy"
    output: str | None = None

    @property
    def baseline_name(self) -> str:
        """The variant that the others are compared with."""
        return self.variants[0].name if self.baseline is None else self.baseline
