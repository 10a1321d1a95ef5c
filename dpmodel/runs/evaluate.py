"""Metrics and privacy claim of a training, from its run folder alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpmodel.config import Config, load_config
from dpmodel.config.reader import Override
from dpmodel.data.fingerprint import Fingerprint
from dpmodel.planning.spent_ledgers import without_spent
from dpmodel.planning.training_plan import plan_training
from dpmodel.runs.build import build_model, build_task
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.trust import load_run
from dpmodel.saving.checkpoint import load_weights
from monitors.errors import CheckpointError, ConfigError
from monitors.spent import PrivacySpent, privacy_spent
from monitors.untrusted import read_json

if TYPE_CHECKING:
    from dpmodel.model import DPModel
    from dpmodel.planning.training_plan import TrainingPlan
    from dpmodel.runs.build import Task

#: Settings of the privacy section that choose how the ledger is read, not what was released.
_STATED_ANEW = {"delta": None, "accountant": None}


@dataclass(frozen=True)
class MeasuredData:
    """Whether metrics belong to the test data that the training was measured on.

    Args:
        used: The data measured on now.
        recorded: The data the training was measured on; None if its run folder does not say.
    """

    used: Fingerprint
    recorded: Fingerprint | None

    @property
    def same(self) -> bool | None:
        """Whether both are the same; None if unknown, as for private examples of the same number."""
        return None if self.recorded is None else self.used.same_as(self.recorded)

    @property
    def warning(self) -> str | None:
        """A warning to show beside the metrics; None if both are the same."""
        if self.recorded is None:
            return "the run folder does not say which test data it was measured on: these may be different"
        if self.same:
            return None
        if self.same is None and self.recorded.digest is not None:
            return (
                "data.validation holds these examples back from the private training data, but test_data.json of an "
                "earlier version has a digest of them, which confirms a guess: remove it before you share the folder"
            )
        if self.same is None:
            return (
                "data.validation holds these examples back from the private training data, so the run folder keeps no "
                "digest of them: only their number was compared"
            )
        return (
            f"these are not the test data that the run was measured on: {self.recorded} then, {self.used} now; the "
            "metrics above are not figures of that run"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        recorded = None if self.recorded is None else self.recorded.to_dict()
        return {"same": self.same, "used": self.used.to_dict(), "recorded": recorded, "warning": self.warning}


@dataclass(frozen=True)
class Evaluation:
    """What was measured and what was spent.

    Args:
        metrics: Name to value, over the test data.
        spent: Epsilon of the ledger in the folder, with its conditions.
        test_data: Whether the test data are those of the training.
        num_examples: Training examples, or the stated number that sets the sampling rate.
    """

    metrics: dict[str, float]
    spent: PrivacySpent
    test_data: MeasuredData
    num_examples: int


def evaluate_run(
    path: str | os.PathLike[str], overrides: Iterable[Override] = (), *, trust_code: bool = False
) -> Evaluation:
    """Rebuild network and data of a run folder, load its weights, measure, and read the ledger.

    Args:
        path: Folder of ``dpmodel train``.
        overrides: Settings to change, such as ``"performance.device=cpu"`` or ``"privacy.delta=1e-6"``.
        trust_code: Run the code that the configuration names (``network.module``, ``features.module``, ``plugins``),
            even if the folder was not made here.

    Raises:
        ConfigError: Not a run folder, a wrong setting, or a changed setting that the claim depends on; or the folder
            was not made here and names code, and ``trust_code`` is not given.
        CheckpointError: Weights or ledger are missing, damaged, or belong to a different training.
        DataError: The data are missing or damaged.
    """
    folder = RunFolder.existing(path)
    config = load_run(folder, overrides, trust_code=trust_code)
    stored = load_config(folder.config, import_plugins=False)
    require_same_training(stored, config)
    ledger = folder.read_ledger()
    task, plan, model = _rebuilt(folder, config, stored)
    privacy = config.privacy
    spent = privacy_spent(ledger, privacy.delta, privacy.accountant, plan.release.statement)
    test_data = MeasuredData(task.data.test_fingerprint, _recorded(folder))
    metrics = model.eval(task.placed(task.data.test))
    return Evaluation(metrics, spent, test_data, plan.release.sampler.stated_examples)


def _rebuilt(folder: RunFolder, config: Config, stored: Config) -> tuple[Task, TrainingPlan, DPModel]:
    """Data and network, the plan, and the model with the weights of the folder."""
    task = build_task(config)
    plan = plan_training(without_spent(stored), stored.data.num_examples or len(task.data.train))
    model = build_model(task, plan.release)
    if not folder.checkpoint.is_file():
        raise CheckpointError(f"{folder.checkpoint} is missing; train with output.checkpoint: true")
    load_weights(task.network, folder.checkpoint)
    return task, plan, model


def evaluated_classes(path: str | os.PathLike[str], *, trust_code: bool = False) -> tuple[Tensor, Tensor]:
    """Predicted and true classes of the evaluation data of a run folder, both of shape (n,).

    Args:
        path: Folder of ``dpmodel train``.
        trust_code: As in ``evaluate_run``.

    Raises:
        ConfigError: As in ``evaluate_run``; or the evaluation data changed since, or have no classes.
    """
    folder = RunFolder.existing(path)
    config = load_run(folder, trust_code=trust_code)
    task, _, model = _rebuilt(folder, config, config)
    measured = MeasuredData(task.data.test_fingerprint, _recorded(folder))
    if measured.recorded is None or measured.same is False:
        raise ConfigError(f"{folder.path}: accuracy by subgroup cannot be measured: {measured.warning}")
    test = task.data.test
    inputs, targets = test.batch(torch.arange(len(test)))
    outputs = model.predict(test.transform_batch(inputs))
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or targets.dim() != 1 or targets.is_floating_point():
        raise ConfigError(f"{folder.path}: accuracy by subgroup needs a network with one output per class")
    predicted = outputs.argmax(dim=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).long()
    return predicted, targets


def _recorded(folder: RunFolder) -> Fingerprint | None:
    try:
        return Fingerprint.from_dict(read_json(folder.test_data))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder.test_data} cannot be read: {error}; remove it to evaluate without it"
        ) from error


def require_same_training(stored: Config, config: Config) -> None:
    """The claim is about the training in the folder: only the settings that choose how it is stated may change.

    Raises:
        ConfigError: ``config`` changes another setting of the section ``privacy`` of ``stored``.
    """
    before, after = ({**asked.privacy.model_dump(), **_STATED_ANEW} for asked in (stored, config))
    changed = next((name for name in before if before[name] != after[name]), None)
    if changed is not None:
        raise ConfigError(
            f"{config.where(f'privacy.{changed}')}: privacy.{changed} is a fact of the training in the folder; only "
            f"{' and '.join(f'privacy.{name}' for name in _STATED_ANEW)} may be changed"
        )
