"""What is attacked: the network of a run folder, what a configuration trains, or a model in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpmodel.attack.pool import FEWEST, Pool
from dpmodel.claims.claim import without_guarantee
from dpmodel.config import Config, load_config
from dpmodel.config.reader import Override
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.inference import INFERENCE_BATCH, evaluation_batches
from dpmodel.data.splits import DataSplits
from dpmodel.model import DPModel
from dpmodel.runs.build import build_task
from dpmodel.runs.evaluate import require_same_training
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.trust import load_run
from dpmodel.saving.checkpoint import load_weights
from monitors.errors import CheckpointError, ConfigError, DataError
from monitors.ledger import Ledger

#: What a reader of the report must know about examples that were never in a training.
HELD_OUT = (
    "members and others are different examples: if they come from different populations, an attack may tell these "
    "apart, and not membership"
)


@dataclass(frozen=True)
class Subject:
    """What is attacked, ready for queries.

    Args:
        name: What it is, in words.
        pool: Members and others.
        network: The network in evaluation mode; untrained if there is only a configuration.
        loss_fn: Its loss.
        device: Where it runs.
        ledger: The releases of its training; None if there is only a configuration.
        config: Its configuration; None of a model in memory.
        delta: Delta of its epsilon.
        notes: What a reader must know.
    """

    name: str
    pool: Pool
    network: nn.Module
    loss_fn: Any
    device: torch.device
    ledger: Ledger | None
    config: Config | None
    delta: float
    notes: tuple[str, ...] = ()


def open_subject(
    asked: Any,
    members: Any,
    held_out: Any,
    examples: int | None,
    overrides: Iterable[Override] = (),
    *,
    trust_code: bool = False,
) -> Subject:
    """The subject of an attack; a run folder is read and not changed.

    Args:
        asked: A run folder, a configuration, the path of one, or a model.
        members: The training data of a model.
        held_out: Other data, for a model.
        examples: Most attacked examples of each kind.
        overrides: Settings of a run folder or a YAML file to change.
        trust_code: Run the code that the configuration of a run folder names, even if it was not made here.

    Raises:
        ConfigError: Not a run folder, a configuration or a model; or arguments that do not belong to it.
        CheckpointError: Weights or ledger are missing, damaged, or belong to a different training.
        DataError: Data are missing or damaged.
    """
    if isinstance(asked, DPModel):
        if members is None or held_out is None:
            raise ConfigError("a model is attacked with its training data and others: attack(model, data, held_out)")
        return _of_model(asked, members, held_out, examples)
    if members is not None or held_out is not None:
        raise ConfigError("a run folder or a configuration names its data; leave out data and held_out")
    if isinstance(asked, (str, os.PathLike)):
        if not Path(asked).is_file():
            return _of_run(Path(asked), examples, overrides, trust_code)
        asked = load_config(asked, overrides)
    if not isinstance(asked, Config):
        raise ConfigError(
            f"attack takes a run folder, a configuration, the path of one, or a DPModel, got {type(asked).__name__}"
        )
    task = build_task(asked)
    name = f"trainings of {Path(asked.source).name}"
    pool = Pool.of(task.data, examples)
    return Subject(name, pool, task.network, task.loss_fn, task.device, None, asked, asked.privacy.delta)


def _of_run(path: Path, examples: int | None, overrides: Iterable[Override], trust_code: bool) -> Subject:
    folder = RunFolder.existing(path)
    config = load_run(folder, overrides, trust_code=trust_code)
    require_same_training(load_config(folder.config, import_plugins=False), config)
    folder.read_ledger()  # what is damaged is refused before the data are read
    if not folder.checkpoint.is_file():
        raise CheckpointError(f"{folder.checkpoint} is missing; train with output.checkpoint: true")
    task = build_task(config)
    load_weights(task.network, folder.checkpoint)
    # A training that goes on meanwhile writes weights and ledger. The ledger of a later moment covers these weights.
    ledger = folder.read_ledger()
    lacking = without_guarantee(ledger)
    notes = (HELD_OUT, *([] if lacking is None else [f"the ledger gives no guarantee: {lacking}"]))
    pool = Pool.of(task.data, examples)
    return Subject(
        f"run {path}", pool, task.network, task.loss_fn, task.device, ledger, config, config.privacy.delta, notes
    )


def _of_model(model: DPModel, members: Any, held_out: Any, examples: int | None) -> Subject:
    train, others = _read(members, "data"), _read(held_out, "held_out")
    for name, part in (("data", train), ("held_out", others)):
        if len(part) < FEWEST:
            raise DataError(f"{name} holds {len(part)} examples; an attack needs at least {FEWEST}")
    classes = 1 + int(train.y.max()) if not train.y.is_floating_point() else int(train.y.shape[1])
    pool = Pool.of(DataSplits("memory", train, others, classes), examples)
    name = f"model with network {type(model.network).__name__}"
    return Subject(
        name, pool, model.network, model.loss_fn, model.device, model.ledger.copy(), None, _MODEL_DELTA, (HELD_OUT,)
    )


#: Delta at which the epsilon of a model in memory is stated.
_MODEL_DELTA = 1e-5


def _read(given: Any, name: str) -> InMemoryDataset:
    """All examples of a loader, a data set or a pair of tensors."""
    batches = list(evaluation_batches(given, INFERENCE_BATCH))
    if not batches:
        raise DataError(f"{name} holds no examples; an attack needs at least {FEWEST}")
    columns = [[batch[place] for batch in batches] for place in (0, 1)]
    if not all(isinstance(part, torch.Tensor) for column in columns for part in column):
        raise DataError(f"{name} must give one tensor of inputs and one of targets")
    x, y = (torch.cat(column) for column in columns)
    return InMemoryDataset(x, y)
