"""Which exact plan each layer uses: by estimated cost (reproducible on a CPU), or timed once per layer and shape."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechanisms.engines.bookkeeping.layers.rules import Plan, Term

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

    Estimated costs are those of a CPU. On a GPU, where launches and the library's kernels decide, plans are timed, once
    for each shape and each power of two of examples.

    Args:
        timed: Time the plans on a CPU too. Sums then differ in their last bits from one run to the next, since another
            plan may win; estimated costs (the default) always choose the same.

    Attributes:
        choices: The last choice for each parameter and shape of an example.
    """

    def __init__(self, timed: bool = False) -> None:
        self.timed = timed
        self.choices: dict[tuple[object, ...], PlanChoice] = {}
        self._by_size: dict[tuple[object, ...], PlanChoice] = {}

    def run(
        self, key: tuple[object, ...], plans: Sequence[Plan], entries: Callable[[], int], like: Tensor | None = None
    ) -> Term:
        """The term of the best plan.

        Args:
            key: The parameter, and the shapes of an example.
            plans: The plans; the same names for the same key.
            entries: Number of entries of the parameter.
            like: A tensor of the batch, on its device; None for one on the CPU.
        """
        on_gpu = like is not None and like.device.type == "cuda"
        sized = (*key, len(like).bit_length()) if like is not None and on_gpu else key
        choice = self._by_size.get(sized)
        if choice is None:
            timed = len(plans) > 1 and (self.timed or on_gpu)
            choice = self._by_size[sized] = self.choices[key] = _chosen(plans, entries, timed)
        if len(plans) == 1:
            return plans[0].run()
        return next(plan for plan in plans if plan.name == choice.plan).run()


def _chosen(plans: Sequence[Plan], entries: Callable[[], int], timed: bool) -> PlanChoice:
    figures = {plan.name: _milliseconds(plan, entries()) if timed else plan.cost for plan in plans}
    if timed and not math.isfinite(min(figures.values())):
        return PlanChoice(min(plans, key=lambda plan: plan.elements).name, figures, timed)
    return PlanChoice(min(figures, key=figures.__getitem__), figures, timed)


def _milliseconds(plan: Plan, entries: int) -> float:
    """The fastest of a few rounds; infinite where the device has no memory for it, or the library no kernel."""
    try:
        _once(plan, entries)  # kernels are loaded, and memory is found
        return min(_once(plan, entries) for _ in range(ROUNDS))
    except RuntimeError:
        if not torch.cuda.is_initialized():
            raise
        torch.cuda.empty_cache()
        return math.inf


def _once(plan: Plan, entries: int) -> float:
    _wait()
    start = time.perf_counter()
    term = plan.run()
    out = term.squared_norms.new_zeros(entries)
    term.add_to(out, torch.ones_like(term.squared_norms))
    _wait()
    return 1e3 * (time.perf_counter() - start)


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
