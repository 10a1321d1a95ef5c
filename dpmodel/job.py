"""A whole training from a configuration: checked, trained, recorded in a run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel._files import write_atomically
from dpmodel.build import Training, build_training
from dpmodel.config import Config
from dpmodel.interrupt import InterruptStop
from dpmodel.recorder import RunRecorder
from dpmodel.runfolder import RunFolder

if TYPE_CHECKING:
    from dpmodel.history import History
    from dpmodel.report import PrivacyReport

RUNS = Path("runs")


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
    callbacks: Iterable[Any] = (),
    announce: Callable[[Training, RunFolder], None] | None = None,
) -> TrainingResult:
    """Train what ``config`` describes and write it into a run folder.

    Everything that can be refused is refused before the folder is made and before any budget is spent.

    Args:
        config: The configuration.
        directory: The run folder; default: that of the configuration, or ``runs/<its name>``.
        force: Move a run folder that is in use aside.
        callbacks: Further callbacks, such as a progress bar.
        announce: Called with the training and its folder before the first step.

    Raises:
        ConfigError, DataError: Before any budget is spent.
        DPModelError: While training; the ledger and the report are written all the same.
    """
    folder = RunFolder(Path(directory) if directory is not None else default_directory(config))
    training = build_training(config)
    folder.claim(force=force)
    write_atomically(folder.config, resolved_yaml(training))
    if announce is not None:
        announce(training, folder)
    return _carry_out(training, folder, list(callbacks))


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


def _carry_out(training: Training, folder: RunFolder, callbacks: list[Any]) -> TrainingResult:
    recorder, interrupt = RunRecorder(folder, training.plan), InterruptStop()
    listeners = [interrupt, recorder, *training.callbacks, *callbacks]
    try:
        with interrupt.listening():
            history = training.model.fit(
                training.loader,
                training.config.training.epochs,
                valid_loader=training.test_data,
                callbacks=listeners,
            )
    except BaseException as error:
        if recorder.finish(f"failed: {type(error).__name__}: {error}") is None:
            folder.abandon()
        raise
    run = recorder.run
    assert run is not None
    report = recorder.finish("finished" if run.stop_reason is None else f"stopped: {run.stop_reason}")
    assert report is not None
    return TrainingResult(folder, history, report, dict(run.metrics), interrupt.interrupted)
