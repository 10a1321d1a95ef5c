"""Metrics and privacy claim of a training that took place, from its run folder alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from dpmodel.build import build_model, build_task
from dpmodel.checkpoint import load_weights
from dpmodel.config import load_config
from dpmodel.config.reader import Override
from dpmodel.plan import plan_training
from dpmodel.runfolder import RunFolder
from monitors.accountant import PrivacySpent, privacy_spent
from monitors.errors import CheckpointError
from monitors.ledger import Ledger


@dataclass(frozen=True)
class Evaluation:
    """What was measured and what was spent.

    Args:
        metrics: Name to value, over the test data.
        spent: Epsilon of the ledger in the folder, with its conditions.
    """

    metrics: dict[str, float]
    spent: PrivacySpent


def evaluate_run(path: str | os.PathLike[str], overrides: Iterable[Override] = ()) -> Evaluation:
    """Rebuild network and data of a run folder, load its weights, measure, and read the ledger.

    Args:
        path: Folder of ``dpmodel train``.
        overrides: Settings to change, such as ``"performance.device=cpu"``.

    Raises:
        ConfigError: No run folder, or a setting is wrong.
        CheckpointError: Weights or ledger are missing, damaged, or of another training.
        DataError: The data are missing or damaged.
    """
    folder = RunFolder.existing(path)
    config = load_config(folder.config, overrides)
    ledger = _ledger(folder)
    task = build_task(config)
    model = build_model(config, task)
    if not folder.checkpoint.is_file():
        raise CheckpointError(f"{folder.checkpoint} is not there; train with output.checkpoint: true")
    load_weights(task.network, folder.checkpoint)
    plan = plan_training(task.config, len(task.data.train))
    privacy = config.privacy
    spent = privacy_spent(ledger, privacy.delta, privacy.accountant, plan.release.statement)
    return Evaluation(model.eval(task.placed(task.data.test)), spent)


def _ledger(folder: RunFolder) -> Ledger:
    try:
        return Ledger.load(folder.ledger)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder.ledger} is not there; without the ledger no epsilon can be stated for this model"
        ) from error
    except ValueError as error:
        raise CheckpointError(str(error)) from error
