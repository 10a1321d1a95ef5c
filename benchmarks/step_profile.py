"""Where the time of one private step goes: the engine with clocks around its stages, compared with plain torch.

Stages do not overlap and, with the time between them ("other"), add up to the step. The clocks wrap the functions of
the engine itself, so the profile cannot diverge from the engine that trains.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from steps import engine_step, fresh_network, optimizer_of
from workloads import Workload

from mechanisms.engines.bookkeeping import engine, terms
from mechanisms.engines.bookkeeping.formulas import FormulaBook
from mechanisms.noise import Gaussian

ENGINE = "bookkeeping"

#: Stage -> the functions whose time it is, without the time of stages inside them.
STAGES: dict[str, tuple[tuple[Any, str], ...]] = {
    "forward pass": ((engine, "record_forward"),),
    "gradients of the outputs": ((engine, "record_backward"),),
    "layers' terms (squared norms)": (
        (terms.EarlyTerms, "on_gradient"),
        (engine, "layer_uses"),
        (engine, "terms_of"),
    ),
    "norms and clip factors": ((engine, "_norms"), (engine, "bounded_factors")),
    "clipped sums": ((engine.BookKeepingEngine, "partial_sum"),),
    "noise": ((Gaussian, "add"),),
    "update": ((torch.optim.SGD, "step"),),
}
OTHER = "other"


class Stopwatch:
    """Seconds of each stage of each step, and of each parameter's term."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.terms: list[dict[str, float]] = []
        self._inner: list[float] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step; time outside all stages is ``OTHER``."""
        self.steps.append(defaultdict(float))
        self.terms.append(defaultdict(float))
        with self.stage(OTHER):
            yield

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``, without the time of stages inside it."""
        self._inner.append(0.0)
        begun = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - begun
            self.steps[-1][name] += took - self._inner.pop()
            if self._inner:
                self._inner[-1] += took

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed as ``name``."""

        @wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return watched

    def around_terms(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """``FormulaBook.run``, timed for each parameter."""

        @wraps(run)
        def watched(book: FormulaBook, key: tuple[Any, ...], *args: Any) -> Any:
            begun = time.perf_counter()
            term = run(book, key, *args)
            self.terms[-1][f"{key[0]}.{key[1]} | {book.choices[key].formula}"] += time.perf_counter() - begun
            return term

        return watched

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Install the clocks in the block."""
        with ExitStack() as undo:
            for name, functions in STAGES.items():
                for owner, attribute in functions:
                    timed = self.around(name, getattr(owner, attribute))
                    undo.enter_context(patch.object(owner, attribute, timed))
            undo.enter_context(patch.object(FormulaBook, "run", self.around_terms(FormulaBook.run)))
            yield


def plain_phases(workload: Workload, size: int) -> Callable[[], dict[str, float]]:
    """A plain step that returns the seconds of its phases."""
    network, (x, y) = fresh_network(workload), workload.batch(size)
    optimizer = optimizer_of(network)

    def step() -> dict[str, float]:
        optimizer.zero_grad()
        begun = time.perf_counter()
        loss = F.cross_entropy(network(x), y)
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        optimizer.step()
        return {"forward pass": forward - begun, "backward pass": backward - forward, "update": _since(backward)}

    return step


def _since(begun: float) -> float:
    return time.perf_counter() - begun


def profile(workload: Workload, size: int, rounds: int, seconds: float) -> list[str]:
    """Tables of milliseconds, medians over all steps; plain and private steps are interleaved."""
    private, plain, watch = engine_step(ENGINE, workload, size), plain_phases(workload, size), Stopwatch()
    plain_steps: list[dict[str, float]] = []
    for warm_up in (private, plain) * 2:
        warm_up()
    for _ in range(rounds):
        _repeat(lambda: plain_steps.append(plain()), seconds)
        with watch.watching():
            _repeat(partial(_one, watch, private), seconds)
    named = f"{workload.name} ({size})"
    return [
        *_table(f"Plain step, {named}", plain_steps, ["forward pass", "backward pass", "update"]),
        *_table(f"Private step, {named}, engine `{ENGINE}`", watch.steps, [*STAGES, OTHER]),
        *_table(
            f"Layers' terms of {named}, by parameter and formula",
            watch.terms,
            list(watch.terms[-1]),
            "parameter | formula",
        ),
    ]


def _one(watch: Stopwatch, step: Callable[[], object]) -> None:
    with watch.step():
        step()


def _repeat(work: Callable[[], object], seconds: float) -> None:
    begun = time.perf_counter()
    while True:
        work()
        if time.perf_counter() - begun >= seconds:
            return


def _table(title: str, steps: list[dict[str, float]], rows: list[str], first: str = "stage") -> list[str]:
    medians = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in rows}
    whole = statistics.median(sum(step.values()) for step in steps)
    dividers = "|".join(["---"] * (first.count("|") + 1))
    empty = "| " * first.count("|")
    return [
        f"### {title}",
        "",
        f"| {first} | ms | share |",
        f"|{dividers}|---:|---:|",
        *[f"| {name} | {1e3 * value:.2f} | {value / whole:.0%} |" for name, value in medians.items()],
        f"| **all** {empty}| **{1e3 * whole:.2f}** | |",
        "",
    ]
