"""Trains what a configuration describes and records it in a run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel.callbacks import Silence
from dpmodel.config import Config
from dpmodel.data.progress import no_progress
from dpmodel.distributed.group import current_ranks
from dpmodel.planning.bands import leaves_bands_open, with_bands
from dpmodel.planning.from_config import with_noise_multiplier
from dpmodel.preflight.task import locating_refusals
from dpmodel.runs.build import SOLVED_FOR, Training, build_training
from dpmodel.runs.folder import RunFolder, is_final
from dpmodel.runs.recorder import RunRecorder
from dpmodel.saving.keeper import StateKeeper
from dpmodel.saving.lock import FolderLock
from dpmodel.saving.record import DEFAULT_EVERY_N_STEPS, ReleaseRecord
from dpmodel.saving.state import WHAT_TO_DO
from dpmodel.statistics.normalisation import PrivateNormalisation
from dpmodel.training.interrupt import INTERRUPTED, InterruptStop
from monitors.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from dpmodel.runs.report import PrivacyReport
    from dpmodel.saving.state import TrainingState
    from dpmodel.training.history import History

    _Begun = tuple[Training, ReleaseRecord | None]
    _Held = AbstractContextManager[FolderLock]

RUNS = Path("runs")


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training.

    Args:
        folder: Its run folder.
        history: Its epochs.
        report: Its privacy report.
        metrics: The last validation metrics.
        interrupted: Whether a signal interrupted it.
        signal: The number of that signal.
    """

    folder: RunFolder
    history: History
    report: PrivacyReport
    metrics: dict[str, float]
    interrupted: bool = False
    signal: int | None = None


def train_from_config(
    config: Config,
    directory: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    callbacks: Iterable[Any] = (),
    announce: Callable[[Training, RunFolder], None] | None = None,
    lock: FolderLock | None = None,
) -> TrainingResult:
    """Train what ``config`` describes and write it into a run folder.

    Faults are refused before the folder is made and before any budget is spent. During the training, the folder keeps
    its state (``output.save_every_steps``), and no other process may use it.

    A resumed training has the same planned ledger as one that was never interrupted; see ``StateKeeper`` for what is
    restored and how steps that were lost with a killed process are charged.

    In a process group, every rank calls this function with the same arguments; rank 0 alone uses the folder.

    Args:
        config: The configuration.
        directory: The run folder; default: that of the configuration, or ``runs/<its name>``.
        force: Move an existing run folder aside.
        resume: Continue the interrupted training in the run folder; ``config`` must describe the same training,
            except for the sections ``performance`` and ``output``.
        callbacks: Further callbacks, such as a progress bar.
        announce: Called with the training and its folder before the first step.
        lock: The folder's lock, if the caller already holds it.

    Raises:
        ConfigError, DataError: Before any budget is spent; also if the training in the folder has finished, or a
            different process uses the folder.
        CheckpointError: Before any budget is spent: the state is missing, damaged, or belongs to a different training.
        ValueError: Both ``force`` and ``resume`` are given.
        DPModelError: During the training; ledger and report are still written.
    """
    folder = RunFolder(Path(directory) if directory is not None else default_directory(config))
    if force and resume:
        raise ValueError("force moves the training in the folder aside, and resume continues it; give one of them")
    ranks = current_ranks()
    held = FolderLock(folder.path) if lock is None else nullcontext(lock)
    begin = partial(_resumed, held=held) if resume else partial(_new, force=force, held=held)
    if not ranks.first:
        begin = partial(_followed, resume=resume)
    listeners = list(callbacks)
    silent = any(isinstance(each, Silence) for each in listeners)
    with ranks.together(), no_progress(silent), begin(config, folder) as (training, keeper):
        return _carry_out(training, folder, listeners, keeper, announce)


@contextmanager
def _new(config: Config, folder: RunFolder, *, force: bool, held: _Held) -> Iterator[_Begun]:
    """A new training; its folder is claimed and locked."""
    training = build_training(config)
    with held as lock:
        if folder.claim(force=force) is not None:
            lock.acquire()  # the locked folder has been moved aside
        try:
            lock.write(folder.config, training.resolved_yaml)
            lock.write(folder.test_data, json.dumps(training.task.data.test_fingerprint.to_dict()) + "\n")
            lock.write(folder.inputs, json.dumps(training.task.inputs.to_dict()) + "\n")
        except BaseException:
            folder.abandon(lock)
            raise
        every = config.output.save_every_steps
        if every is None:
            yield training, ReleaseRecord(folder.path, lock=lock)
        else:
            yield training, StateKeeper(folder.path, every, settings=training.settings, lock=lock)


@contextmanager
def _resumed(config: Config, folder: RunFolder, *, held: _Held) -> Iterator[_Begun]:
    """The training in ``folder``, continued from its state; the folder is locked."""
    if not folder.path.exists():
        raise ConfigError(f"{folder.path} does not exist: there is nothing to resume; leave out --resume to start")
    RunFolder.existing(folder.path)
    with held as lock:
        ended = folder.ended()
        if ended is not None:
            lock.remove(folder.state)  # a process that was killed after its end has left it
            raise ConfigError(
                f"the training in {folder.path} has already ended ({ended}). Choose a different folder with --output "
                "(or output.directory) for a new training"
            )
        every = config.output.save_every_steps or DEFAULT_EVERY_N_STEPS
        keeper = StateKeeper(folder.path, every, resume=True, lock=lock)
        state = keeper.load()
        assert state is not None
        training = _as_begun(config, state)
        keeper.settings = training.settings
        yield training, keeper


@contextmanager
def _followed(config: Config, folder: RunFolder, *, resume: bool) -> Iterator[_Begun]:
    """The training of a rank that uses no folder."""
    del folder
    if resume:
        config, target = current_ranks().share((config, None))
        yield _with_target(config, target), None
    else:
        yield build_training(config), None


def _as_begun(config: Config, state: TrainingState) -> Training:
    """The training of ``config`` with the noise multiplier and the number of bands that it began with."""
    target, solved = state.settings.get(SOLVED_FOR), state.settings.get("privacy.noise_multiplier")
    given, bands = config.privacy.target_epsilon, state.settings.get("privacy.noise.bands")
    if leaves_bands_open(config) and isinstance(bands, int):
        config = with_bands(config, bands)
    if given is not None:
        if given != target or solved is None:
            raise CheckpointError(
                f"{state.path} belongs to a different training: privacy.target_epsilon is {given!r} here and "
                f"{target!r} in the state. {WHAT_TO_DO}"
            )
        config = with_noise_multiplier(config, solved)
    return _with_target(*current_ranks().share((config, target)))


def _with_target(config: Config, target: float | None) -> Training:
    """The resumed training of a configuration whose noise multiplier was solved for ``target``."""
    training = build_training(config, resumed=True)
    return replace(training, plan=replace(training.plan, target_epsilon=target))


def default_directory(config: Config) -> Path:
    """``output.directory``, or ``runs/`` with the file name of the configuration."""
    return Path(config.output.directory) if config.output.directory else RUNS / Path(config.source).stem


def _carry_out(
    training: Training,
    folder: RunFolder,
    callbacks: list[Any],
    keeper: ReleaseRecord | None,
    announce: Callable[[Training, RunFolder], None] | None,
) -> TrainingResult:
    recorder, interrupt = RunRecorder(keeper, training.config.output, training.plan.subject), InterruptStop()
    # What releases something before the first step comes last, after all that may take note of the beginning.
    listeners = sorted(
        [interrupt, *training.callbacks, *callbacks], key=lambda each: isinstance(each, PrivateNormalisation)
    )
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
                output=recorder,
            )
    except BaseException:
        # The record removes its files if nothing was released.
        if keeper is not None and not keeper.resume and not keeper.lock.holds(folder.ledger):
            folder.abandon(keeper.lock)
        raise
    run, report = recorder.run, recorder.report
    assert run is not None
    assert report is not None
    if keeper is not None and is_final(report.status):
        keeper.lock.remove(folder.state)
    interrupted = (run.stop_reason or "").startswith(INTERRUPTED)  # on whichever rank
    return TrainingResult(folder, history, report, dict(run.metrics), interrupted, interrupt.signal)
