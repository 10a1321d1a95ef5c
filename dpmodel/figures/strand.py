"""What is drawn as one line: a training, or several of one kind, with its schedule and its privacy."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpmodel.figures.epsilon_curve import Floats, Privacy, epsilon_over
from dpmodel.planning.training_plan import TrainingPlan, plan_training
from dpmodel.runs.folder import RESERVED_NOTE, RunFolder
from dpmodel.training.history import History
from monitors.errors import ConfigError
from monitors.ledger import Ledger

_MOST_POINTS = 400


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
    privacy = epsilon_over(
        ledger, history.column("step"), config.privacy.delta, config.privacy.accountant, _steps_done(folder, ledger)
    )
    return strand_of_plan(name or Path(path).name, plan, [history], privacy)


def _steps_done(folder: RunFolder, ledger: Ledger) -> int | None:
    """Steps that the ledger of a run folder charges; None where each release that was kept is one."""
    if RESERVED_NOTE in ledger.notes:
        return None
    try:
        return int(json.loads(folder.report.read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(folder: RunFolder, delta: float) -> tuple[Ledger, History]:
    try:
        history = History.from_csv(folder.history, delta)
        history.read_norm_bounds(folder.norm_bounds)
        ledger = Ledger.load(folder.ledger)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder.path} cannot be drawn: {error}") from error
    if not len(history):
        raise ConfigError(f"{folder.path} cannot be drawn: no epoch of it has ended")
    return ledger, history
