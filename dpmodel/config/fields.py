"""Types of configuration fields: checked numbers, and sections with and without free keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo, model_validator

from monitors import checks


def _checked(check: Callable[..., None]) -> AfterValidator:
    def validate(value: Any, info: ValidationInfo) -> Any:
        check(**{str(info.field_name): value})
        return value

    return AfterValidator(validate)


PositiveFloat = Annotated[float, _checked(checks.positive)]
UnitFloat = Annotated[float, _checked(checks.unit_interval)]
OpenUnitFloat = Annotated[float, _checked(checks.open_unit)]
PositiveInt = Annotated[int, _checked(checks.positive_int)]
NonNegativeInt = Annotated[int, _checked(checks.non_negative_int)]

#: YAML gives lists; frozen sections hold tuples.
FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


class Section(BaseModel):
    """A frozen section of the configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NamedSection(Section):
    """A section that builds something by ``name``; its other keys are passed as arguments.

    A plain string is short for the name: ``loss: mse`` means ``loss: {name: mse}``.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """The free keys."""
        return dict(self.model_extra or {})
