"""Callbacks by name, for configurations."""

from __future__ import annotations

from typing import Any

from dpmodel.callbacks.base import Callback
from dpmodel.callbacks.csv_logger import CSVLogger
from dpmodel.callbacks.early_stopping import EarlyStopping
from dpmodel.callbacks.learning_rate import LearningRateScheduler
from dpmodel.callbacks.loss_monitor import LossMonitor
from dpmodel.callbacks.model_checkpoint import ModelCheckpoint
from dpmodel.callbacks.progress_bar import ProgressBar
from dpmodel.callbacks.tensorboard_logger import TensorBoardLogger
from dpmodel.callbacks.weight_averaging import WeightAveraging
from monitors.arguments import check_arguments
from monitors.registry import Registry

CALLBACKS: Registry[Any] = Registry("callback")
CALLBACKS.register("CSVLogger")(CSVLogger)
CALLBACKS.register("EarlyStopping")(EarlyStopping)
CALLBACKS.register("LearningRateScheduler")(LearningRateScheduler)
CALLBACKS.register("LossMonitor")(LossMonitor)
CALLBACKS.register("ModelCheckpoint")(ModelCheckpoint)
CALLBACKS.register("ProgressBar")(ProgressBar)
CALLBACKS.register("TensorBoardLogger")(TensorBoardLogger)
CALLBACKS.register("WeightAveraging")(WeightAveraging)


def build_callback(name: str, **args: Any) -> Callback:
    """Build a callback by its registered name.

    Raises:
        ValueError: Unknown name or argument (the nearest is suggested), or it needs a package that is not installed.

    Example:
        >>> build_callback("EarlyStopping", patience=5).patience
        5
        >>> build_callback("LosMonitor")
        Traceback (most recent call last):
            ...
        ValueError: unknown callback 'LosMonitor'; did you mean 'LossMonitor'? Known: ...
    """
    builder = CALLBACKS.get(name)
    check_arguments(builder, args, f"callback {name!r}")
    try:
        return builder(**args)  # type: ignore[no-any-return]
    except ImportError as error:
        raise ValueError(str(error)) from error
