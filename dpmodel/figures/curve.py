"""The data behind one line of a figure: one training, or several of one kind, with schedule and privacy."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpmodel.figures.epsilon_curve import Floats, Privacy, epsilon_over
from dpmodel.planning.spent_ledgers import without_spent
from dpmodel.planning.training_plan import TrainingPlan, plan_training
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.trust import require_trusted, untrusted_code
from dpmodel.training.history import History
from mechanisms.units import ClippedUnit
from monitors import checks
from monitors.errors import ConfigError, UnsupportedEventError
from monitors.events import ViolationEvent
from monitors.ledger import Ledger
from monitors.ledger_file import ANNOUNCED_NOTE
from monitors.spent import resolve_accountant
from monitors.untrusted import read_json

_MOST_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """The data behind one line of each figure.

    Args:
        name: Label of the line.
        histories: One history per training, at least one; the trainings differ only in their seeds.
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
        """Steps done at the end of each epoch of the longest training."""
        return max((history.column("step") for history in self.histories), key=len)

    def columns(self, name: str) -> Floats:
        """One column of the histories, shape (trainings, epochs); NaN if a training has no value."""
        rows = np.full((len(self.histories), len(self.steps)), np.nan)
        for row, history in zip(rows, self.histories, strict=True):
            if name in history.columns:
                values = [np.nan if value is None else float(value) for value in history.column(name)]
                row[: len(values)] = values
        return rows


def curve_of_plan(name: str, plan: TrainingPlan, histories: Sequence[History], privacy: Privacy) -> Curve:
    """The curve of trainings that followed ``plan``."""
    steps = tuple(
        int(step) for step in np.unique(np.linspace(0, plan.steps - 1, min(plan.steps, _MOST_POINTS)).round())
    )
    multipliers = tuple(plan.release.noise.noise_multiplier(step) for step in steps)
    return Curve(name, tuple(histories), steps, multipliers, privacy, plan.config.privacy.norm_bound)


def curve_of_run(path: str | os.PathLike[str], name: str | None = None, *, trust_code: bool = False) -> Curve:
    """The curve of a run folder written by ``dpmodel train`` or ``fit(output=...)``; epsilon comes from its ledger.

    Plugins of a folder that was not made here are imported only with ``trust_code``. Without them, the noise
    multipliers come from the ledger too.

    Raises:
        ConfigError: ``path`` is not a run folder, or its history or report is missing.
    """
    folder, label = RunFolder(Path(path)), name or Path(path).name
    if folder.ledger.is_file() and not folder.config.is_file():
        return _curve_of_python(folder, label)
    from dpmodel.config import load_config
    from dpmodel.config.reader import require_names

    config = load_config(RunFolder.existing(path).config, import_plugins=False)
    has_names = not config.plugins or trust_code or not untrusted_code(folder, config)
    if has_names:
        require_names(config)
    privacy = config.privacy
    try:
        ledger, history = _read(folder, privacy.delta)
    except ConfigError as error:
        if not has_names and isinstance(error.__cause__, UnsupportedEventError):
            require_trusted(folder, config)  # an event of a plugin can only be read with the plugin
        raise
    done = _steps_done(folder, ledger)
    spent = epsilon_over(ledger, history.column("step"), privacy.delta, privacy.accountant, done)
    if has_names:
        return curve_of_plan(label, plan_training(without_spent(config)), [history], spent)
    factor = ClippedUnit.of(config.training.batch_size, privacy.micro_batches).sensitivity_factor
    drawn = _schedule(ledger, spent.steps[-1], factor, history, privacy.noise_multiplier or 0.0)
    return Curve(label, (history,), *drawn, spent, privacy.norm_bound)


def _curve_of_python(folder: RunFolder, name: str) -> Curve:
    """The curve of a training with ``fit(output=...)``, whose report takes the place of a configuration."""
    try:
        report = read_json(folder.report)
        delta, accountant, mechanism = float(report["delta"]), str(report["accountant"]), report["mechanism"]
        bound, factor = float(mechanism["initial_norm_bound"]), float(mechanism["sensitivity_factor"])
        first = float(mechanism["initial_noise_multiplier"])
        checks.open_unit(delta=delta)
        checks.positive(initial_norm_bound=bound, sensitivity_factor=factor)
        checks.non_negative(initial_noise_multiplier=first)
        resolve_accountant(accountant)
    except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise ConfigError(
            f"{folder.path} cannot be drawn: it needs the {folder.report.name} that fit(output=...) writes when the "
            f"training ends ({error})"
        ) from error
    ledger, history = _read(folder, delta)
    done = _steps_done(folder, ledger)
    spent = epsilon_over(ledger, history.column("step"), delta, accountant, done)
    steps, multipliers = _schedule(ledger, spent.steps[-1], factor, history, first)
    return Curve(name, (history,), steps, multipliers, spent, bound)


def _schedule(
    ledger: Ledger, done: int, factor: float, history: History, first: float
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Steps and noise multipliers of a training, from its ledger.

    If the events of the ledger do not state them, those at the ends of the epochs, from the history.
    """
    kept = [(event, count) for event, count in ledger.kept if not isinstance(event, ViolationEvent)]
    counts = np.array([count for _, count in kept], dtype=np.int64)
    # Releases other than steps, such as a private statistic, were made before them.
    starts = (np.cumsum(counts) - counts - max(int(counts.sum()) - done, 0)).clip(min=0)
    stated = np.array([_stated_multiplier(event.to_dict()) for event, _ in kept]) * factor
    known = [(row.step - 1, row.noise_multiplier) for row in history if row.noise_multiplier is not None]
    places = np.searchsorted(starts, [step for step, _ in known], side="right") - 1
    if not len(kept) or not np.allclose(stated[places], [multiplier for _, multiplier in known]):
        ends = {0: first, **dict(known)}
        return tuple(ends), tuple(ends.values())
    shown = np.unique(np.linspace(0, len(kept) - 1, min(len(kept), _MOST_POINTS)).round().astype(int))
    drawn = dict(zip(starts[shown].tolist(), stated[shown].tolist(), strict=True))
    drawn[done - 1] = float(stated[-1])
    return tuple(drawn), tuple(drawn.values())


def _stated_multiplier(event: object) -> float:
    """The first noise multiplier in the JSON values of an event; NaN if there is none."""
    if isinstance(event, dict):
        if "noise_multiplier" in event:
            return float(event["noise_multiplier"])
        event = list(event.values())
    inner = map(_stated_multiplier, event) if isinstance(event, list) else ()
    return next((found for found in inner if not math.isnan(found)), math.nan)


def _steps_done(folder: RunFolder, ledger: Ledger) -> int | None:
    """Steps that the ledger of a run folder charges; None if every kept release is a step."""
    if ANNOUNCED_NOTE in ledger.notes:
        return None
    try:
        steps = read_json(folder.report)["steps"]
        checks.non_negative_int(steps=steps)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return int(steps)


def _read(folder: RunFolder, delta: float) -> tuple[Ledger, History]:
    try:
        history = History.from_csv(folder.history, delta)
        history.read_norm_bounds(folder.norm_bounds)
        ledger = folder.read_ledger()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder.path} cannot be drawn: {error}") from error
    if not len(history):
        raise ConfigError(f"{folder.path} cannot be drawn: it has no finished epoch yet")
    return ledger, history
