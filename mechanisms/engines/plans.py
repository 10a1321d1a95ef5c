"""Which exact plan each layer uses: by estimated cost (reproducible), or timed once per layer and shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mechanisms.engines.layers.rules import Plan, Term

#: Timing rounds; the fastest of them counts, so that another process cannot decide for us.
ROUNDS = 3


@dataclass(frozen=True)
class PlanChoice:
    """What was chosen for one parameter of one layer.

    Args:
        plan: Name of the plan in use.
        measured: Milliseconds (timed) or estimated multiply-adds of every plan, by name.
        timed: Which of the two.
    """

    plan: str
    measured: dict[str, float]
    timed: bool

    def words(self) -> str:
        """The choice and the figures behind it, for people."""
        if len(self.measured) == 1:
            return self.plan
        unit = "{:.2f} ms" if self.timed else "{:.3g} multiply-adds (estimated)"
        others = ", ".join(f"{name} {unit.format(cost)}" for name, cost in self.measured.items())
        return f"{self.plan} ({others})"


class PlanBook:
    """Remembers the choice for every parameter and shape.

    Args:
        timed: Time the plans on the first batch of a shape. Sums then differ in their last bits from one run to the
            next, since another plan may win; estimated costs (the default) always choose the same.
    """

    def __init__(self, timed: bool = False) -> None:
        self.timed = timed
        self.choices: dict[tuple[object, ...], PlanChoice] = {}

    def run(self, key: tuple[object, ...], plans: Sequence[Plan], entries: Callable[[], int]) -> Term:
        """The term of the best plan for a parameter of so many entries."""
        choice = self.choices.get(key)
        if choice is None:
            choice = self.choices[key] = self._choose(plans, entries)
        if len(plans) == 1:
            return plans[0].run()
        return next(plan for plan in plans if plan.name == choice.plan).run()

    def _choose(self, plans: Sequence[Plan], entries: Callable[[], int]) -> PlanChoice:
        timed = self.timed and len(plans) > 1
        figures = {plan.name: _milliseconds(plan, entries()) if timed else plan.cost for plan in plans}
        return PlanChoice(min(figures, key=figures.__getitem__), figures, timed)


def _milliseconds(plan: Plan, entries: int) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        _wait()
        start = time.perf_counter()
        term = plan.run()
        out = term.squared_norms.new_zeros(entries)
        term.add_to(out, torch.ones_like(term.squared_norms))
        _wait()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
