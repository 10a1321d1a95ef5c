"""What a request and its answers look like."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Query(BaseModel):
    """Rows to answer, and what to answer; everything follows from the same noisy scores, and costs the same."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"rows": [[0.0, 1.0]], "top_k": 2}]}
    )

    rows: Annotated[list[Any], Field(min_length=1, description="Numbers in nested lists, one entry per row.")]
    probabilities: bool = Field(False, description="Whether to give the probability of each class.")
    top_k: Annotated[int, Field(ge=1)] | None = Field(None, description="Number of best classes to give.")
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Give the best class as `confident` if its probability is at least this, else -1."
    )


class Answers(BaseModel):
    """One entry per row in each list; -1 and null stand for rows without an answer."""

    labels: list[int]
    probabilities: list[list[float] | None] | None = None
    top_k: list[list[int]] | None = None
    confident: list[int] | None = None


class Budget(BaseModel):
    """What was charged over all clients, and what is left."""

    free: bool = Field(description="Whether answers cost nothing.")
    claim: str = Field(description="What the answers claim, in words.")
    asked: int | None = Field(None, description="Number of answers that were charged.")
    left: int | None = Field(None, description="Number of answers that still fit.")
    spent: float | None = Field(None, description="Epsilon that is spent.")
    epsilon: float | None = Field(None, description="The whole budget.")
    delta: float | None = Field(None, description="Delta of the budget.")


class Refusal(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="A fixed word for programs.")
    detail: str = Field(description="What happened, and what to do.")
    asked: int | None = Field(None, description="budget_exhausted: number of answers that were asked for.")
    left: int | None = Field(None, description="budget_exhausted: number of answers that still fit.")
    spent: float | None = Field(None, description="budget_exhausted: epsilon that is spent.")
    epsilon: float | None = Field(None, description="budget_exhausted: the whole budget.")
    delta: float | None = Field(None, description="budget_exhausted: delta of the budget.")
