"""Teachers: networks that were trained without privacy on disjoint, secret parts of the data."""

from __future__ import annotations

import copy
import hmac
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpmodel.compare.jobs import JobOutcome, PooledJob, PooledRun, Stepped, fault_of, never
from dpmodel.compare.pool import default_jobs, run_jobs
from dpmodel.compare.runner import NullWatcher, Watcher, with_threads
from dpmodel.config import Config
from dpmodel.config.identity import settings_by_path
from dpmodel.config.marked_yaml import read_yaml
from dpmodel.config.reader import checked_config, require_names
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.loader import PrivateLoader
from dpmodel.data.splits import DataSplits
from dpmodel.nets import build_network
from dpmodel.prediction.convex import ConvexHead
from dpmodel.prediction.partition import Partition
from dpmodel.prediction.plain_training import PlainTraining
from dpmodel.prediction.teacher_checks import classes_of, require_all_rows, require_enough
from dpmodel.prediction.teachers_folder import Ensemble, TeachersFolder, keyed_digest, keyed_row_digests, new_id
from dpmodel.preflight.configured import require_known_names
from dpmodel.preflight.network import fix
from dpmodel.preflight.own_rows import require_own_rows
from dpmodel.runs.build import Task, build_task, read_data
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.trust import require_trusted
from dpmodel.saving.lock import FolderLock
from monitors import checks
from monitors.errors import CheckpointError, ConfigError, DataError

#: Sections of a configuration that a teacher depends on.
_SECTIONS = ("plugins", "data", "features", "network", "loss", "optimizer", "training")

#: Settings in them that it does not depend on.
_NO_PART = ("data.num_examples", "training.metrics")

#: Sections that are not used.
UNUSED = "the sections privacy, callbacks and output are not used: teachers train without noise"


class Teachers(NamedTuple):
    """Trained teachers, as ``EnsembleLogits`` takes them.

    Args:
        networks: One network per part, in evaluation mode.
        rows: The rows that each was trained on; private.
    """

    networks: list[nn.Module]
    rows: list[NDArray[np.int64]]


class ConstantVote(nn.Module):
    """Votes for one class, whatever the input: the teacher of a part without rows, or with rows of one class.

    Args:
        label: The class.
        classes: Number of scores.

    Example:
        >>> ConstantVote(1, 3)(torch.zeros(2, 5)).tolist()
        [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    """

    def __init__(self, label: int, classes: int) -> None:
        super().__init__()
        self.label, self.classes = label, classes

    def extra_repr(self) -> str:
        """The vote, on which answers depend."""
        return f"label={self.label}, classes={self.classes}"

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, classes)."""
        scores = torch.zeros(len(x), self.classes, device=x.device)
        scores[:, self.label] = 1.0
        return scores


@dataclass(frozen=True)
class TeacherJob:
    """The training of one teacher.

    Args:
        number: The part.
        folder: Folder of the teachers.
        ensemble_id: ID that the folder must have.
        settings: Configuration as YAML.
    """

    number: int
    folder: str
    ensemble_id: str
    settings: str = field(repr=False)
    steps: int = 1

    @property
    def directory(self) -> str:
        """The file of the teacher, below which nothing is locked: it is written at once."""
        return str(TeachersFolder(Path(self.folder)).teacher(self.number))

    @property
    def label(self) -> str:
        """Number of the teacher."""
        return f"teacher {self.number}"

    def train(self, stepped: Stepped, stop_reason: Callable[[], str | None] = never) -> JobOutcome:
        """Train the teacher in this process, unless it was trained meanwhile."""
        folder = TeachersFolder(Path(self.folder))
        try:
            ensemble = _ensemble(self.folder, self.ensemble_id)
            if ensemble.is_finished(folder, self.number):
                return JobOutcome(self, reused=True)
            teacher = _trained(_task(self.settings, ensemble), ensemble, self.number, stop_reason)
            if teacher is None:
                return JobOutcome(self, interrupted=True)
            ensemble.save_teacher(folder, self.number, teacher)
        except KeyboardInterrupt:
            return JobOutcome(self, interrupted=True)
        except Exception as error:
            return JobOutcome(self, fault_of(error))
        stepped(self.number, self.steps)
        return JobOutcome(self)


@dataclass(frozen=True)
class TeachersRun(PooledRun):
    """Outcome of ``train_teachers``.

    Args:
        folder: Folder of the teachers.
        parts: Number of teachers.
        reused: Number of teachers that were already trained.
        outcomes: How each training of this call ended.
        missing: Number of teachers that are not trained.
    """

    folder: TeachersFolder
    parts: int
    reused: int
    outcomes: tuple[JobOutcome, ...] = ()
    missing: int = 0

    @property
    def ok(self) -> bool:
        """Whether all teachers are trained."""
        return self.missing == 0


def train_teachers(
    config: Config,
    directory: str | os.PathLike[str],
    parts: int = 250,
    *,
    jobs: int | None = None,
    watcher: Watcher | None = None,
    seed: int | None = 0,
) -> TeachersRun:
    """Train one network per part of the training data, WITHOUT privacy, for ``EnsembleLogits``.

    Data, features, network, loss, optimizer and epochs are those of ``config``; its sections ``privacy``, ``callbacks``
    and ``output`` are not used. The rows are assigned to parts at random and in secret, so a row that is added or
    removed changes one teacher only. A part without rows, or with rows of one class, gets a constant vote.

    Teachers that the folder holds are kept: repeat the call after an interruption. The folder is as private as the
    data, and is written with that mode; only noisy answers may leave it.

    Args:
        config: The configuration of a training; the network returns scores (N, classes).
        directory: Folder of the teachers; created if missing.
        parts: Number of teachers, at least 2 and at most the number of rows.
        jobs: Number of processes; default: half of the cores.
        watcher: Is notified of the progress.
        seed: 0 for secret parts. Any other integer makes them reproducible (tests only).

    Raises:
        ConfigError: A setting is wrong or lets one row change several teachers, the folder holds teachers of another
            configuration or other files, or a different process trains there.
        DataError: The data are missing or damaged, or their targets are not classes.

    Example:
        >>> import tempfile
        >>> from dpmodel.config import make_config
        >>> config = make_config({"data": {"name": "synthetic", "num_train": 200}, "network": "linear",
        ...     "optimizer": {"name": "SGD", "lr": 0.5}, "privacy": {"noise_multiplier": 1.0},
        ...     "training": {"epochs": 2, "batch_size": 10}})
        >>> folder = tempfile.mkdtemp()
        >>> train_teachers(config, folder, parts=4, jobs=1).ok
        True
        >>> len(load_teachers(folder).networks)
        4

    References:
        Papernot et al. 2017, "Semi-supervised Knowledge Transfer for Deep Learning from Private Training Data" (PATE).
    """
    processes = default_jobs() if jobs is None else jobs
    checks.positive_int(jobs=processes, parts=parts)
    observer = NullWatcher() if watcher is None else watcher
    require_known_names(config)
    require_all_rows(config)
    config = with_threads(config, processes)
    settings = config.to_yaml()
    try:
        task = _KEPT[settings] = build_task(config, private=False)
        classes = classes_of(config, task)
        require_enough(parts, len(task.data.train))
        require_own_rows(PrivateLoader(task.data.train, 1), released=True)
        folder = TeachersFolder(Path(directory))
        with FolderLock(folder.path) as lock:
            ensemble = _claimed(folder, lock, config, task, parts, classes, seed)
            missing = [part for part in range(parts) if not ensemble.is_finished(folder, part)]
            todo: list[PooledJob] = [
                TeacherJob(part, str(folder.path), ensemble.ensemble_id, settings) for part in missing
            ]
            observer.training(todo, parts - len(todo))
            outcomes = run_jobs(todo, processes, observer) if todo else []
            lock.require_in_place()
            left = sum(not ensemble.is_finished(folder, part) for part in missing)
    finally:
        _KEPT.clear()
        _ensemble.cache_clear()
    return TeachersRun(folder, parts, parts - len(todo), tuple(outcomes), left)


def load_teachers(directory: str | os.PathLike[str], *, trust_code: bool = False) -> Teachers:
    """The networks of ``train_teachers`` and the rows of each: ``EnsembleLogits(networks, rows=rows, ...)``.

    Args:
        directory: Folder of the teachers.
        trust_code: Run the code that the configuration in the folder names, even if the folder was not made here.

    Raises:
        ConfigError: The folder holds no teachers, not all of them are trained, or it names code and was not made here.
        CheckpointError: A file is damaged.
    """
    folder = TeachersFolder(Path(directory))
    ensemble = Ensemble.load(folder)
    parts = range(len(ensemble.partition))
    missing = sum(not ensemble.is_finished(folder, part) for part in parts)
    if missing:
        raise ConfigError(
            f"{missing} of {len(parts)} teachers in {folder.path} are not trained; repeat `dpmodel teachers`"
        )
    config = config_of(folder, ensemble, trust_code=trust_code)
    first = build_network(
        config.network.name,
        config.network.module,
        seed=config.training.seed,
        defaults=ensemble.facts,
        **config.network.options,
    )
    first = fix(first) if config.network.fix else first
    networks = [_restored(first, folder, ensemble, part) for part in parts]
    return Teachers(networks, [ensemble.partition.rows(part) for part in parts])


def config_of(folder: TeachersFolder, ensemble: Ensemble, *, trust_code: bool = False) -> Config:
    """The configuration of the teachers in a folder, with its plugins imported.

    Raises:
        ConfigError: It names code, and the folder was not made here.
    """
    source = str(folder.partition)
    config = checked_config(read_yaml(ensemble.config, source), source, import_plugins=False)
    if not (trust_code or ensemble.made_here):
        require_trusted(RunFolder(folder.path), config)
    require_names(config)
    return config


def stored_data(task: Task) -> DataSplits:
    """The data of ``task`` as stored, before any features, which differ between devices."""
    if task.config.features is None:
        return task.data
    return read_data(task.config.model_copy(update={"features": None}), task.device)[0]


def holds_data(ensemble: Ensemble, examples: InMemoryDataset) -> bool:
    """Whether the teachers were trained on these stored examples, in this order."""
    return hmac.compare_digest(_data_digest(examples, ensemble.ensemble_id), ensemble.data)


def held_rows(ensemble: Ensemble, examples: InMemoryDataset) -> list[int]:
    """The rows of these stored examples whose inputs are those of an example that a teacher was trained on.

    Copies alone are found. Folders of earlier versions keep no digests of their rows: the result is then empty.
    """
    if ensemble.row_digests is None:
        return []
    known = {row.tobytes() for row in ensemble.row_digests.numpy()}
    found = keyed_row_digests(examples.x, ensemble.ensemble_id).numpy()
    return [number for number, row in enumerate(found) if row.tobytes() in known]


def _data_digest(examples: InMemoryDataset, key: str) -> str:
    """Keyed digest of inputs and targets."""
    return keyed_digest([examples.x, examples.y], key)


#: The task that this process trains teachers of, by its configuration: there are many teachers of one.
_KEPT: dict[str, Task] = {}


def _task(settings: str, ensemble: Ensemble) -> Task:
    """Data, network and loss of a configuration.

    Raises:
        DataError: The data are not those whose rows were assigned to parts.
    """
    if settings not in _KEPT:
        source = "configuration of the teachers"
        _KEPT.clear()
        task = build_task(checked_config(read_yaml(settings, source), source), private=False)
        if not holds_data(ensemble, stored_data(task).train):
            raise DataError(
                "the training data are not the same each time they are read, so teachers would share rows; their "
                "reader must give the same examples in the same order"
            )
        _KEPT[settings] = task
    return _KEPT[settings]


@lru_cache(maxsize=1)
def _ensemble(path: str, ensemble_id: str) -> Ensemble:
    ensemble = Ensemble.load(TeachersFolder(Path(path)))
    if ensemble.ensemble_id != ensemble_id:
        raise CheckpointError(f"{path} was replaced while its teachers were trained; repeat the command")
    return ensemble


def _claimed(
    folder: TeachersFolder, lock: FolderLock, config: Config, task: Task, parts: int, classes: int, seed: int | None
) -> Ensemble:
    """The ensemble of the folder, if it is of this configuration and these data; a new one in an empty folder."""
    settings = _settings(task.config, parts)
    if not lock.holds(folder.partition):
        folder.require_unused()
        key, facts = new_id(), task.data.network_defaults()
        partition = Partition.draw(len(task.data.train), parts, seed)
        stored = stored_data(task).train
        digest, rows = _data_digest(stored, key), keyed_row_digests(stored.x, key)
        drawn = Ensemble(key, partition, config.to_yaml(), settings, digest, facts, classes, rows)
        drawn.save(folder, lock)
        return drawn
    found = Ensemble.load(folder)
    changed = sorted(name for name in {*settings, *found.settings} if settings.get(name) != found.settings.get(name))
    if changed:
        name = changed[0]
        raise ConfigError(
            f"{folder.path} holds teachers of another configuration: {name} is {settings.get(name)!r} here and "
            f"{found.settings.get(name)!r} there. Choose a different folder with --output"
        )
    if not holds_data(found, stored_data(task).train):
        raise ConfigError(
            f"{folder.path} holds teachers of other training data. Choose a different folder with --output"
        )
    return found


def _settings(config: Config, parts: int) -> dict[str, Any]:
    """What a teacher depends on, by path, as read back from JSON."""
    values = {
        name: value
        for name, value in settings_by_path(config).items()
        if name.partition(".")[0] in _SECTIONS and name not in _NO_PART
    }
    return cast(dict[str, Any], json.loads(json.dumps({**values, "parts": parts})))


def _trained(
    task: Task, ensemble: Ensemble, part: int, stop_reason: Callable[[], str | None]
) -> dict[str, Tensor] | int | None:
    """The weights of the teacher of a part, or its constant vote; None if there was a reason to stop.

    It depends on the rows of its part alone, and on what is public.
    """
    rows = torch.from_numpy(ensemble.partition.rows(part))
    x, y = task.data.train.batch(rows)
    x, y = x.to(task.device), y.to(task.device)
    present = y.bincount(minlength=ensemble.classes)
    if int((present > 0).sum()) < 2:
        return int(present.argmax()) if len(rows) else part % ensemble.classes
    network = copy.deepcopy(task.network)
    try:
        finished = PlainTraining.of(task).fit(network, x, y, stream=part, stop_reason=stop_reason)
    except ArithmeticError:
        if not isinstance(network, ConvexHead):
            raise
        return int(present.argmax())  # its optimum was not found, which is no reason to name the part
    return dict(network.state_dict()) if finished else None


def _restored(first: nn.Module, folder: TeachersFolder, ensemble: Ensemble, part: int) -> nn.Module:
    saved = ensemble.load_teacher(folder, part)
    if isinstance(saved, int):
        return ConstantVote(saved, ensemble.classes)
    network = copy.deepcopy(first)
    try:
        network.load_state_dict(saved)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"{folder.teacher(part)} does not fit the network of its configuration: {reason}"
        ) from error
    return network.eval()
