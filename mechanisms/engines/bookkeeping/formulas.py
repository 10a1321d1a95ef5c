"""Chooses the exact formula of each layer: by estimated cost (reproducible on a CPU), or by timing each shape once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechanisms.engines.bookkeeping.layers.rules import Formula, Term

#: Timing rounds; the fastest counts, so that other processes do not distort the choice.
ROUNDS = 3


@dataclass(frozen=True)
class FormulaChoice:
    """The formula chosen for one parameter of one layer.

    Args:
        formula: Name of the chosen formula.
        measured: Milliseconds (if timed) or estimated multiply-adds of each formula, by name.
        timed: Whether the formulas were timed.
    """

    formula: str
    measured: dict[str, float]
    timed: bool

    def words(self) -> str:
        """The choice and the figures behind it, in words."""
        if len(self.measured) == 1:
            return self.formula
        unit = "{:.2f} ms" if self.timed else "{:.3g} multiply-adds (estimated)"
        others = ", ".join(f"{name} {unit.format(cost)}" for name, cost in self.measured.items())
        return f"{self.formula} ({others})"


class FormulaBook:
    """Remembers the chosen formula for each parameter and shape.

    Estimated costs are those of a CPU. On a GPU, where launch overhead and the library's kernels decide, formulas are
    timed, once for each shape and each power of two of the number of examples.

    Args:
        timed: Time the formulas on a CPU too. The last bits of two runs may then differ, since a different formula may
            win; estimated costs (the default) always give the same choice.

    Attributes:
        choices: The latest choice for each parameter and shape of an example.
    """

    def __init__(self, timed: bool = False) -> None:
        self.timed = timed
        self.choices: dict[tuple[object, ...], FormulaChoice] = {}
        self._by_size: dict[tuple[object, ...], FormulaChoice] = {}

    def run(
        self,
        key: tuple[object, ...],
        formulas: Sequence[Formula],
        entries: Callable[[], int],
        like: Tensor | None = None,
    ) -> Term:
        """Compute the term by the best formula.

        Args:
            key: The parameter, and the shapes of an example.
            formulas: The formulas; the same names for the same key and type of numbers.
            entries: Number of entries of the parameter.
            like: A tensor of the batch; None for a batch on the CPU.
        """
        on_gpu = like is not None and like.device.type == "cuda"
        sized = (*key, len(like).bit_length()) if like is not None and on_gpu else key
        choice = self._by_size.get(sized)
        if choice is None or all(formula.name != choice.formula for formula in formulas):
            timed = len(formulas) > 1 and (self.timed or on_gpu)
            choice = self._by_size[sized] = self.choices[key] = _chosen(formulas, entries, timed, like)
        if len(formulas) == 1:
            return formulas[0].run()
        return next(formula for formula in formulas if formula.name == choice.formula).run()


def _chosen(formulas: Sequence[Formula], entries: Callable[[], int], timed: bool, like: Tensor | None) -> FormulaChoice:
    figures = {formula.name: _milliseconds(formula, entries(), like) if timed else formula.cost for formula in formulas}
    if timed and not math.isfinite(min(figures.values())):
        return FormulaChoice(min(formulas, key=lambda formula: formula.elements).name, figures, timed)
    return FormulaChoice(min(figures, key=figures.__getitem__), figures, timed)


def _milliseconds(formula: Formula, entries: int, like: Tensor | None) -> float:
    """The fastest of a few rounds; infinity if the device lacks the memory, or the library a kernel."""
    try:
        _once(formula, entries, like)  # loads kernels and allocates memory
        return min(_once(formula, entries, like) for _ in range(ROUNDS))
    except RuntimeError:
        if not torch.cuda.is_initialized():
            raise
        torch.cuda.empty_cache()
        return math.inf


def _once(formula: Formula, entries: int, like: Tensor | None) -> float:
    _wait(like)
    start = time.perf_counter()
    term = formula.run()
    norms = term.squared_norms if like is None else term.squared_norms.to(like.dtype)
    term.add_to(norms.new_zeros(entries), torch.ones_like(norms))
    _wait(like)
    return 1e3 * (time.perf_counter() - start)


def _wait(like: Tensor | None) -> None:
    if like is not None and like.device.type == "cuda":
        torch.cuda.current_stream(like.device).synchronize()
