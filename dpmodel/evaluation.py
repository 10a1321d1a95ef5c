"""Metrics and privacy claim of a training that took place, from its run folder alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from dpmodel.build import build_model, build_task
from dpmodel.checkpoint import load_weights
from dpmodel.config import Config, load_config
from dpmodel.config.reader import Override
from dpmodel.plan import plan_training
from dpmodel.runfolder import RunFolder
from monitors.accountant import PrivacySpent, privacy_spent
from monitors.errors import CheckpointError, ConfigError
from monitors.ledger import Ledger

#: Settings of the privacy section that choose how the ledger is read, not what was released.
_STATED_ANEW = {"delta": None, "accountant": None}


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
        overrides: Settings to change, such as ``"performance.device=cpu"`` or ``"privacy.delta=1e-6"``.

    Raises:
        ConfigError: No run folder, a setting is wrong, or one that the claim rests on was changed.
        CheckpointError: Weights or ledger are missing, damaged, or of another training.
        DataError: The data are missing or damaged.
    """
    folder = RunFolder.existing(path)
    stored, config = load_config(folder.config), load_config(folder.config, overrides)
    _require_same_training(stored, config)
    ledger = _ledger(folder)
    task = build_task(config)
    model = build_model(config, task)
    if not folder.checkpoint.is_file():
        raise CheckpointError(f"{folder.checkpoint} is not there; train with output.checkpoint: true")
    load_weights(task.network, folder.checkpoint)
    plan = plan_training(stored, stored.data.num_examples or len(task.data.train))
    privacy = config.privacy
    spent = privacy_spent(ledger, privacy.delta, privacy.accountant, plan.release.statement)
    return Evaluation(model.eval(task.placed(task.data.test)), spent)


def _require_same_training(stored: Config, config: Config) -> None:
    """The claim is about the training that took place: of its privacy, only how it is stated may change."""
    before, after = ({**asked.privacy.model_dump(), **_STATED_ANEW} for asked in (stored, config))
    changed = next((name for name in before if before[name] != after[name]), None)
    if changed is not None:
        raise ConfigError(
            f"{config.where(f'privacy.{changed}')}: privacy.{changed} is a fact of the training in the folder; only "
            f"{' and '.join(f'privacy.{name}' for name in _STATED_ANEW)} may be changed"
        )


def _ledger(folder: RunFolder) -> Ledger:
    try:
        return Ledger.load(folder.ledger)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder.ledger} is not there; without the ledger no epsilon can be stated for this model"
        ) from error
    except ValueError as error:
        raise CheckpointError(str(error)) from error
