"""A whole training from a configuration: checked, trained, recorded in a run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel.config import Config
from dpmodel.config.identity import settings_by_path
from dpmodel.data.fingerprint import Fingerprint
from dpmodel.planning.from_config import with_noise_multiplier
from dpmodel.preflight.task import locating_refusals
from dpmodel.runs.build import Training, build_training
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.recorder import RunRecorder
from dpmodel.saving.keeper import DEFAULT_EVERY_N_STEPS, StateKeeper
from dpmodel.saving.lock import FolderLock
from dpmodel.saving.resume import WHAT_TO_DO
from dpmodel.training.interrupt import InterruptStop
from monitors.atomic import write_atomically
from monitors.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from dpmodel.runs.report import PrivacyReport
    from dpmodel.saving.state import TrainingState
    from dpmodel.training.history import History

    _Begun = tuple[Training, StateKeeper | None]

RUNS = Path("runs")

#: Setting that keeps what the noise multiplier was solved for.
_SOLVED_FOR = "privacy.target_epsilon (solved for)"


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training.

    Args:
        folder: Its run folder.
        history: Its epochs.
        report: Its privacy report.
        metrics: The last validation metrics.
        interrupted: Whether the user broke it off.
    """

    folder: RunFolder
    history: History
    report: PrivacyReport
    metrics: dict[str, float]
    interrupted: bool = False


def train_from_config(
    config: Config,
    directory: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    callbacks: Iterable[Any] = (),
    announce: Callable[[Training, RunFolder], None] | None = None,
) -> TrainingResult:
    """Train what ``config`` describes and write it into a run folder.

    Everything that can be refused is refused before the folder is made and before any budget is spent. While it trains,
    the folder keeps the state of the training (``output.save_every_steps``), and no other process may use it.

    A resumed training is the one that would have been, with the same planned ledger; see ``StateKeeper`` for what that
    means and how steps that were lost with a killed process are charged.

    Args:
        config: The configuration.
        directory: The run folder; default: that of the configuration, or ``runs/<its name>``.
        force: Move a run folder that is in use aside.
        resume: Continue the interrupted training in the run folder; ``config`` must describe the same one,
            but for the sections ``performance`` and ``output``.
        callbacks: Further callbacks, such as a progress bar.
        announce: Called with the training and its folder before the first step.

    Raises:
        ConfigError, DataError: Before any budget is spent; also where the training in the folder is finished, or the
            folder is in use by another process.
        CheckpointError: Likewise: there is no state to resume from, it is damaged, or it is of another training.
        ValueError: Both ``force`` and ``resume`` are given.
        DPModelError: While training; the ledger and the report are written all the same.
    """
    folder = RunFolder(Path(directory) if directory is not None else default_directory(config))
    if force and resume:
        raise ValueError("force moves the training in the folder aside, and resume continues it; give one of them")
    begin = _resumed if resume else partial(_new, force=force)
    with begin(config, folder) as (training, keeper):
        return _carry_out(training, folder, list(callbacks), keeper, announce)


@contextmanager
def _new(config: Config, folder: RunFolder, *, force: bool) -> Iterator[_Begun]:
    """A new training, its folder claimed and locked."""
    training = build_training(config)
    lock = FolderLock(folder.path)
    with lock:
        if folder.claim(force=force) is not None:
            lock.acquire()  # what was locked so far has been moved aside
        write_atomically(folder.config, resolved_yaml(training))
        write_atomically(folder.test_data, json.dumps(Fingerprint.of(training.task.data.test).to_dict()) + "\n")
        every, keeper = config.output.save_every_steps, None
        if every is not None:
            keeper = StateKeeper(folder.path, every, settings=_settings(training), lock=lock)
        yield training, keeper


@contextmanager
def _resumed(config: Config, folder: RunFolder) -> Iterator[_Begun]:
    """The training in ``folder``, which is locked, from its state."""
    with FolderLock(RunFolder.existing(folder.path).path) as lock:
        ended = folder.ended()
        if ended is not None:
            raise ConfigError(
                f"the training in {folder.path} has already ended ({ended}); there is nothing to resume. Choose "
                "another folder with --output (or output.directory) for a new one"
            )
        every = config.output.save_every_steps or DEFAULT_EVERY_N_STEPS
        keeper = StateKeeper(folder.path, every, resume=True, lock=lock)
        state = keeper.load()
        assert state is not None
        training = _as_begun(config, state)
        keeper.settings = _settings(training)
        yield training, keeper


def _as_begun(config: Config, state: TrainingState) -> Training:
    """The training of ``config`` with the noise multiplier that was solved for when it began."""
    target, solved = state.settings.get(_SOLVED_FOR), state.settings.get("privacy.noise_multiplier")
    given = config.privacy.target_epsilon
    if given is not None:
        if given != target or solved is None:
            raise CheckpointError(
                f"{state.path} is of another training: privacy.target_epsilon is {given!r} here and {target!r} in the "
                f"state. {WHAT_TO_DO}"
            )
        config = with_noise_multiplier(config, solved)
    training = build_training(config)
    return replace(training, plan=replace(training.plan, target_epsilon=target))


def _settings(training: Training) -> dict[str, Any]:
    """What a training is, by the paths of its configuration."""
    return {**settings_by_path(training.config), _SOLVED_FOR: training.plan.target_epsilon}


def default_directory(config: Config) -> Path:
    """``output.directory``, or ``runs/`` with the file name of the configuration."""
    return Path(config.output.directory) if config.output.directory else RUNS / Path(config.source).stem


def resolved_yaml(training: Training) -> str:
    """The configuration as it is carried out, with what was solved for in a comment."""
    target = training.plan.target_epsilon
    lines = [f"# resolved from {Path(training.config.source).name}: every default is written out"]
    if target is not None:
        lines.append(f"# noise_multiplier was solved for target_epsilon {target:g}")
    return "\n".join([*lines, training.config.to_yaml()])


def _carry_out(
    training: Training,
    folder: RunFolder,
    callbacks: list[Any],
    keeper: StateKeeper | None,
    announce: Callable[[Training, RunFolder], None] | None,
) -> TrainingResult:
    recorder, interrupt = RunRecorder(folder, training.config.output, training.plan.subject), InterruptStop()
    # The recorder comes last: a callback that refuses to begin must find nothing written.
    listeners = [interrupt, *training.callbacks, *callbacks, recorder]
    try:
        if announce is not None:
            announce(training, folder)
        with interrupt.listening(), locating_refusals(training.config):
            history = training.model.fit(
                training.loader,
                training.config.training.epochs,
                valid_loader=training.test_data,
                callbacks=listeners,
                keeper=keeper,
            )
    except BaseException as error:
        never_began = recorder.finish(f"failed: {type(error).__name__}: {error}") is None
        if never_began and not (keeper is not None and keeper.resume):
            folder.abandon()
        raise
    run = recorder.run
    assert run is not None
    report = recorder.finish(run.status())
    assert report is not None
    if keeper is not None and folder.ended() is not None:
        keeper.discard()
    return TrainingResult(folder, history, report, dict(run.metrics), interrupt.interrupted)
