"""The section of the configuration with what only the user knows about a training; it changes no figure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from dpmodel.config.fields import FromList, PositiveInt, Section
from monitors import checks

#: What data may be accessed for besides the training itself, in the order of the card, with its name there.
ACCESSES = {
    "statistics": "Statistics of the data",
    "tuning": "Tuning",
    "validation": "Validation",
    "early_stopping": "Early stopping and choice of a checkpoint",
    "public_data": "Public data",
    "pretrained": "Pretrained weights",
    "other": "Other accesses",
}

AccessKind = Literal["statistics", "tuning", "validation", "early_stopping", "public_data", "pretrained", "other"]
Cover = Literal["charged", "public", "not accounted"]


class AccessSection(Section):
    """One access to data that the library cannot see.

    Args:
        kind: ``statistics``, ``tuning``, ``validation``, ``early_stopping``, ``public_data``, ``pretrained`` or
            ``other``.
        description: What was read, and for what.
        privacy: ``charged`` (a ledger in ``privacy.spent`` states it), ``public`` (no private data were read), or
            ``not accounted``.
    """

    kind: AccessKind
    description: str = Field(min_length=1)
    privacy: Cover = "not accounted"


class UtilitySection(Section):
    """A metric that you publish.

    Args:
        metric: Its name.
        value: Its value, or the mean over ``runs``.
        data: The data that it was measured on.
        spread: Standard deviation over the runs.
        runs: Number of runs.
        baseline: The same metric of a training without privacy.
    """

    metric: str = Field(min_length=1)
    value: float
    data: str = Field(min_length=1)
    spread: float | None = None
    runs: PositiveInt | None = None
    baseline: float | None = None

    @model_validator(mode="after")
    def _spread_of_several_runs(self) -> UtilitySection:
        numbers = {"value": self.value, "spread": self.spread, "baseline": self.baseline}
        checks.finite(**{name: number for name, number in numbers.items() if number is not None})
        if self.spread is not None:
            checks.non_negative(spread=self.spread)
            if self.runs is None or self.runs < 2:
                raise ValueError(f"spread={self.spread:g} is that of several runs; state runs, at least 2")
        return self


class SubgroupsSection(Section):
    """Subgroups of the evaluation data.

    Args:
        file: CSV file with a header and one line for each evaluation example, in their order; relative to the
            configuration.
        column: The column that names the group.
    """

    file: str = Field(min_length=1)
    column: str = Field(min_length=1)


class CardSection(Section):
    """What the privacy card states on your word. Nothing here changes the training or a figure of its privacy.

    Args:
        contributions_per_person: Most examples of one person in the training data, if you enforce a bound. The card
            then also states epsilon for a person.
        release: What is released, to whom.
        threat_model: The threats that were considered.
        accesses: Accesses to data that the library cannot see.
        evaluation_data: ``public``: metrics on the evaluation data may stand on the card, because these data are
            public or the metrics are covered elsewhere. ``private`` (default): they are left out.
        utility: Metrics that you publish, with spread and non-private baseline.
        subgroups: Subgroups of the evaluation data, whose accuracies ``dpmodel card`` measures.
        audit: Folder or JSON file of a report of ``dpmodel audit``.
        governance: Further statements by name, such as ``owner``, ``contact``, ``purpose``, ``license``.
    """

    contributions_per_person: PositiveInt | None = None
    release: str | None = None
    threat_model: str | None = None
    accesses: Annotated[tuple[AccessSection, ...], FromList] = ()
    evaluation_data: Literal["private", "public"] = "private"
    utility: Annotated[tuple[UtilitySection, ...], FromList] = ()
    subgroups: SubgroupsSection | None = None
    audit: str | None = None
    governance: dict[str, str] = Field(default_factory=dict)

    @field_validator("governance", mode="before")
    @classmethod
    def _texts(cls, value: object) -> object:
        if isinstance(value, dict):
            return {str(key): str(text) for key, text in value.items()}
        return value

    @model_validator(mode="after")
    def _subgroups_are_published(self) -> CardSection:
        if self.subgroups is not None and self.evaluation_data != "public":
            raise ValueError(
                "subgroups would publish accuracies on private evaluation data; set evaluation_data: public if they "
                "may be published, or remove subgroups"
            )
        return self
