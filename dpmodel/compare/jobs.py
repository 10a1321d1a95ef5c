"""One training of a comparison: whether it is done already, and how it is carried out."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dpmodel.callbacks.silence import Silence
from dpmodel.compare.identity import config_digest
from dpmodel.config import load_config
from dpmodel.config.marked_yaml import read_yaml
from dpmodel.config.reader import checked_config
from dpmodel.runs.folder import RunFolder
from monitors.errors import DPModelError

if TYPE_CHECKING:
    from dpmodel.config.schema import Config
    from dpmodel.training.run import Run

#: Called with (job number, steps done) while a job trains.
Stepped = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """One training; plain values, so that it can be sent to another process.

    Args:
        number: Its place in the list of jobs.
        variant: Name of the variant.
        seed: Seed of the initial weights.
        steps: Steps that it will take.
        directory: Its run folder.
        settings: Its configuration as YAML.
    """

    number: int
    variant: str
    seed: int
    steps: int
    directory: str
    settings: str = field(repr=False)

    @property
    def label(self) -> str:
        """Variant and seed in words."""
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended.

    Args:
        job: The job.
        fault: What went wrong, or None.
        interrupted: Whether the user broke it off.
    """

    job: Job
    fault: str | None = None
    interrupted: bool = False


def is_finished(folder: RunFolder, config: Config) -> bool:
    """Whether ``folder`` holds a training of ``config`` that was carried to its end."""
    return folder.ended() is not None and folder.history.is_file() and _is_of(folder, config)


def can_go_on(folder: RunFolder, config: Config) -> bool:
    """Whether ``folder`` holds a training of ``config`` that was broken off and kept its state."""
    return folder.ended() is None and folder.state.is_file() and _is_of(folder, config)


def _is_of(folder: RunFolder, config: Config) -> bool:
    try:
        return config_digest(load_config(folder.config)) == config_digest(config)
    except (OSError, ValueError):
        return False


def carry_out(job: Job, stepped: Stepped) -> JobOutcome:
    """Train ``job`` in this process, from where it was broken off if its state is there.

    What else is in its folder is moved aside, never deleted. A fault of one training is its outcome, so that the others
    go on.
    """
    from dpmodel.runs.train import train_from_config

    source = f"{job.label} (as solved)"
    try:
        config = checked_config(read_yaml(job.settings, source), source)
        folder, watcher = RunFolder(Path(job.directory)), _Watcher(job.number, stepped)
        resume = can_go_on(folder, config)
        result = train_from_config(config, folder.path, force=not resume, resume=resume, callbacks=[watcher])
    except KeyboardInterrupt:
        return JobOutcome(job, interrupted=True)
    except Exception as error:
        return JobOutcome(job, f"{type(error).__name__}: {error}{_place(error)}")
    return JobOutcome(job, interrupted=result.interrupted)


def _place(error: Exception) -> str:
    """Where an error arose that does not explain itself: in code of the user's, or in a bug."""
    if isinstance(error, (DPModelError, OSError)):
        return ""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({frame.filename}, line {frame.lineno})"


class _Watcher(Silence):
    """Reports the step and keeps the run from printing."""

    def __init__(self, number: int, stepped: Stepped) -> None:
        self.number = number
        self.stepped = stepped

    def on_train_step_end(self, run: Run) -> None:
        """Report the step."""
        self.stepped(self.number, run.step)
