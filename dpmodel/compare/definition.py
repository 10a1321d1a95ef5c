"""Contents of a comparison file: base, variants, seeds and the common privacy target."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, model_validator

from dpmodel.config.fields import FromList, NonNegativeInt, OpenUnitFloat, PositiveFloat, PositiveInt, Section
from monitors import checks
from monitors.accountant import DEFAULT_DELTA

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]*")


def is_variant_name(text: str) -> bool:
    """Whether ``text`` can be the name of a variant, and thereby of its folder.

    Example:
        >>> is_variant_name("BandedMF 8"), is_variant_name("../8")
        (True, False)
    """
    return _NAME.fullmatch(text) is not None


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
        if not is_variant_name(self.name):
            raise ValueError(
                "name must consist of letters, digits, spaces and . _ + - and begin with a letter or digit, got "
                f"{self.name!r}"
            )
        return self

    @property
    def slug(self) -> str:
        """Name of the variant's folder."""
        return self.name.strip().replace(" ", "-").lower()


class TuneSection(Section):
    """How each variant chooses some of its settings before it is compared.

    Args:
        search: Path of a field to the values that it may take. Every combination is trained.
        seeds: Seeds of the initial weights of these trainings; the mean over the seeds decides.
        validation: Number of training examples that these trainings hold back, and on which the metric is measured.
        mode: ``"max"`` if a higher metric is better, ``"min"`` if a lower one is, ``"auto"`` for the built-in metrics.
    """

    search: dict[str, Annotated[tuple[Any, ...], FromList, Field(min_length=1)]]
    seeds: Annotated[tuple[NonNegativeInt, ...], FromList] = Field((0,), min_length=1)
    validation: PositiveInt
    mode: str = "auto"

    @model_validator(mode="after")
    def _usable(self) -> TuneSection:
        if not self.search:
            raise ValueError("search must name at least one field and its values: {optimizer.lr: [0.1, 1.0]}")
        for path, values in self.search.items():
            repeated = [value for index, value in enumerate(values) if values.index(value) != index]
            if repeated:
                raise ValueError(f"search has {path} {repeated[0]!r} twice; remove one")
        checks.one_of(("auto", "max", "min"), mode=self.mode)
        return self


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
        tune: How each variant chooses some of its settings first; None: all are as stated.
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
    tune: TuneSection | None = None
    output: str | None = None

    @property
    def baseline_name(self) -> str:
        """The variant that the others are compared with."""
        return self.variants[0].name if self.baseline is None else self.baseline
