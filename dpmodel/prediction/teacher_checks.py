"""What a configuration of teachers must satisfy, so that one row changes one teacher."""

from __future__ import annotations

import torch

from dpmodel.config import Config
from dpmodel.data.inference import INFERENCE_BATCH
from dpmodel.prediction.clipped_logits import logits_of
from dpmodel.runs.build import Task
from monitors.errors import ConfigError, DataError


def require_all_rows(config: Config) -> None:
    """Refuse settings with which a row that is added or removed would exchange rows of many teachers.

    Raises:
        ConfigError: There is one.
    """
    for name, value in config.data.rows_by_position.items():
        raise ConfigError(
            f"{config.where(name)}: {name}={value} chooses rows by a permutation of all rows, so a row that is added "
            f"or removed would exchange rows of many teachers; remove {name}. A data set of your own may hold a part "
            "of the rows, if a rule that sees each row alone chose them"
        )


def classes_of(config: Config, task: Task) -> int:
    """Number of scores that the network returns.

    Raises:
        ConfigError: Inputs are normalised with statistics of all rows, classes were counted in the labels, or the
            network returns no scores.
        DataError: The targets are not classes.
    """
    if config.normalise is not None:
        raise ConfigError(
            f"{config.where('normalise')}: normalise releases statistics of all rows, so each row would change every "
            "teacher; remove it, or set public constants data.mean and data.std"
        )
    if task.data.train.y.is_floating_point():
        raise DataError(
            f"teachers vote for classes, but data set {task.data.name!r} has {task.data.num_classes} numbers to predict"
        )
    if task.data.classes_counted:
        raise ConfigError(
            f"{config.where('data')}: data.num_classes is not given, so the classes were counted in the training "
            "labels, and a row that is added or removed could change the outputs of every teacher. State "
            "data.num_classes"
        )
    some = task.data.test.batch(torch.arange(1))[0]
    try:
        return int(logits_of(task.network, some, task.device, INFERENCE_BATCH).shape[1])
    except DataError as error:
        raise ConfigError(f"{config.where('network')}: network: {error}") from error


def require_enough(parts: int, rows: int) -> None:
    """Refuse a number of parts that the rows do not fill.

    Raises:
        ConfigError: It is below 2 or above the number of rows.
    """
    if not 2 <= parts <= rows:
        raise ConfigError(
            f"parts must be at least 2 and at most the number of training examples, {rows:,}, got {parts}"
        )
