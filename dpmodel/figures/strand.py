"""What is drawn as one line: a training, or several of one kind, with its schedule and its privacy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpmodel.history import History
from dpmodel.plan import TrainingPlan, plan_training
from dpmodel.runfolder import RunFolder
from monitors.accountant import Accountant, resolve_accountant
from monitors.errors import ConfigError
from monitors.ledger import Ledger

Floats = NDArray[np.float64]

#: Epsilon is computed at this many steps at most, and drawn as straight lines in between.
MOST_MARKS = 12
_MOST_POINTS = 400


@dataclass(frozen=True)
class Privacy:
    """Epsilon over a training.

    Args:
        steps: Steps done, ascending, from 0.
        epsilons: Epsilon after that many.
        delta: Its delta.
        accountant: Its accountant.
    """

    steps: tuple[int, ...]
    epsilons: tuple[float, ...]
    delta: float
    accountant: str

    def at(self, steps: Sequence[int]) -> Floats:
        """Epsilon after each of ``steps``; a straight line between the steps where it was computed."""
        found: Floats = np.interp(np.asarray(steps, dtype=float), self.steps, self.epsilons)
        return found


@dataclass(frozen=True)
class Strand:
    """One line of every figure.

    Args:
        name: Its label.
        histories: Its trainings, at least one; several differ by their seeds only.
        multiplier_steps: Steps at which ``multipliers`` are given.
        multipliers: Noise multipliers.
        privacy: Epsilon over the steps.
        initial_norm_bound: Norm bound of the first step.
    """

    name: str
    histories: tuple[History, ...]
    multiplier_steps: tuple[int, ...]
    multipliers: tuple[float, ...]
    privacy: Privacy
    initial_norm_bound: float

    @property
    def steps(self) -> list[int]:
        """Steps done at the end of each epoch, of the longest training."""
        return max((history.column("step") for history in self.histories), key=len)

    def columns(self, name: str) -> Floats:
        """One column of the histories, shape (trainings, epochs); NaN where a training has no value."""
        rows = np.full((len(self.histories), len(self.steps)), np.nan)
        for row, history in zip(rows, self.histories, strict=True):
            if name in history.columns:
                values = [np.nan if value is None else float(value) for value in history.column(name)]
                row[: len(values)] = values
        return rows


def strand_of_plan(name: str, plan: TrainingPlan, histories: Sequence[History], privacy: Privacy) -> Strand:
    """The strand of trainings that followed ``plan``."""
    steps = tuple(
        int(step) for step in np.unique(np.linspace(0, plan.steps - 1, min(plan.steps, _MOST_POINTS)).round())
    )
    multipliers = tuple(plan.release.noise.noise_multiplier(step) for step in steps)
    return Strand(name, tuple(histories), steps, multipliers, privacy, plan.config.privacy.norm_bound)


def strand_of_run(path: str | os.PathLike[str], name: str | None = None) -> Strand:
    """The strand of one run folder; epsilon is that of its ledger.

    Raises:
        ConfigError: There is no training in ``path``, or it kept no history.
    """
    from dpmodel.config import load_config

    folder = RunFolder.existing(path)
    config = load_config(folder.config)
    plan = plan_training(config)
    ledger, history = _read(folder, config.privacy.delta)
    privacy = epsilon_over(ledger, history.column("step"), config.privacy.delta, config.privacy.accountant)
    return strand_of_plan(name or Path(path).name, plan, [history], privacy)


def epsilon_over(ledger: Ledger, steps: Sequence[int], delta: float, accountant: str | Accountant) -> Privacy:
    """Epsilon after some of ``steps`` of a training, always after the last one.

    Args:
        ledger: Of the whole training; one release per step, and those that were lost where they were charged.
        steps: Steps done, ascending.
        delta: Strictly between 0 and 1.
        accountant: Name or object.

    Example:
        >>> from monitors import GaussianEvent
        >>> epsilon_over(Ledger().record(GaussianEvent(10.0), 4), [2, 4], 1e-5, "zcdp").steps
        (0, 2, 4)
    """
    chosen = resolve_accountant(accountant)
    done = ledger.kept.total
    inside = [step for step in steps if 0 < step <= done]
    picked = sorted({inside[round(place)] for place in np.linspace(0, len(inside) - 1, min(len(inside), MOST_MARKS))})
    found = [chosen.epsilon(first_releases(ledger, step), delta) for step in picked]
    return Privacy((0, *picked), (0.0, *found), delta, chosen.name)


def first_releases(ledger: Ledger, count: int) -> Ledger:
    """``ledger`` as it was after ``count`` steps that were kept; those that had been lost by then are in it.

    Example:
        >>> from monitors import GaussianEvent
        >>> first_releases(Ledger().record(GaussianEvent(2.0), 5), 3)
        Ledger(3 releases in 1 rows)
    """
    taken, left = Ledger(ledger.notes), count
    for (event, rows), lost in zip(ledger, ledger.marks, strict=True):
        if left <= 0:
            break
        number = rows if lost else min(rows, left)
        taken.record(event, number, lost=lost)
        left -= 0 if lost else number
    return taken


def _read(folder: RunFolder, delta: float) -> tuple[Ledger, History]:
    try:
        history = History.from_csv(folder.history, delta)
        ledger = Ledger.load(folder.ledger)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder.path} cannot be drawn: {error}") from error
    if not len(history):
        raise ConfigError(f"{folder.path} cannot be drawn: no epoch of it has ended")
    return ledger, history
