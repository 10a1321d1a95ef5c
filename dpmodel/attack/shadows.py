"""Shadow models: trainings of one configuration on random halves of a pool, kept in a folder of their own."""

from __future__ import annotations

import hmac
import io
import json
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from dpmodel.attack.evidence import Reference
from dpmodel.attack.pool import Pool
from dpmodel.callbacks.silence import Silence
from dpmodel.compare.jobs import JobOutcome, PooledJob, Stepped, fault_of, never
from dpmodel.compare.pool import run_jobs
from dpmodel.compare.runner import Watcher, with_threads
from dpmodel.config import Config
from dpmodel.config.identity import settings_by_path
from dpmodel.config.marked_yaml import read_yaml
from dpmodel.config.reader import checked_config
from dpmodel.data.inference import INFERENCE_BATCH, predictions
from dpmodel.planning.spent_ledgers import without_spent
from dpmodel.prediction.teachers_folder import keyed_digest
from dpmodel.runs.build import Training, build_task, build_training
from dpmodel.saving.lock import LOCK_NAME, FolderLock
from dpmodel.saving.tensor_file import read_tensor_file, read_values, write_tensor_file
from dpmodel.statistics.normalisation import PrivateNormalisation
from dpmodel.training.run import Run
from mechanisms.sampling import PoissonSampler
from monitors import checks
from monitors.errors import CheckpointError, ConfigError, PrivacyWarning
from monitors.ledger import Ledger
from monitors.untrusted import read_json

Bools = NDArray[np.bool_]

FORMAT = "dpmodel-shadows/1"

#: Callbacks that change the trained weights; the others only write or stop.
_KEPT_CALLBACKS = ("LearningRateScheduler", "WeightAveraging")

_OUTPUTS, _WEIGHT = "outputs", "weight."


def shadow_config(config: Config, size: int, *, noise: bool = True) -> Config:
    """The configuration of a shadow: that of the attacked training, but it writes nothing.

    Args:
        config: The configuration.
        size: Number of attacked examples. Half of it sets the rate and the steps of Poisson sampling, so that a
            training depends on whether an example is in its half, and not on the size of that half.
        noise: False trains without noise; examples are clipped as before.
    """
    callbacks = tuple(one for one in config.callbacks if one.name in _KEPT_CALLBACKS)
    config = _of_stated_size(without_spent(config), size // 2).model_copy(update={"callbacks": callbacks})
    if noise or config.privacy.noise is None:
        return config
    free = {"noise": None, "noise_multiplier": None, "target_epsilon": None}
    monitor = config.privacy.monitor.model_copy(update={"max_eps": None})
    return config.model_copy(update={"privacy": config.privacy.model_copy(update={**free, "monitor": monitor})})


def _of_stated_size(config: Config, size: int) -> Config:
    privacy = config.privacy
    if privacy.sampling != PoissonSampler.name or privacy.num_examples_public is not None:
        return config
    if config.normalise is not None or size < config.training.batch_size:
        return config
    data = config.data.model_copy(update={"num_examples": None})
    return config.model_copy(update={"data": data, "privacy": privacy.model_copy(update={"num_examples_public": size})})


def _to_read_pool(config: Config) -> Config:
    """The configuration with which a process reads the pool, before it states the size of a half again.

    ``data.limit`` and ``data.validation`` choose the pool from a number of rows that a stated size would keep private.
    """
    if not config.data.rows_by_position:
        return config
    privacy = config.privacy.model_copy(update={"num_examples_public": None})
    return config.model_copy(update={"privacy": privacy})


@dataclass(frozen=True)
class Shadow:
    """A trained shadow.

    Args:
        reference: Its outputs for all examples of the pool, and the examples it was trained on.
        ledger: What its training released.
        weights: Its weights.
    """

    reference: Reference
    ledger: Ledger
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class Shadows:
    """A folder of shadows. It is as private as the data, and is written with that mode.

    Shadows come in pairs on complementary halves, so each example is in as many of them as not. An example's half is
    an independent fair coin.

    Args:
        path: The folder.
        key: Random key of the coins, and of the digest of the data; as hex.
        size: Number of attacked examples.
    """

    path: Path
    key: str
    size: int

    def included(self, number: int) -> Bools:
        """Which attacked examples a shadow is trained on, shape (``size``,)."""
        coins = np.random.default_rng([int(self.key, 16), number // 2]).integers(0, 2, self.size).astype(bool)
        return coins if number % 2 == 0 else ~coins

    def file(self, number: int) -> Path:
        """The file of a shadow."""
        return self.path / f"shadow-{number:04d}.safetensors"

    def is_finished(self, number: int) -> bool:
        """Whether a shadow was trained."""
        try:
            return self.file(number).is_file() and self._is_own(read_values(self.file(number)), number)
        except CheckpointError:
            return False

    def save(self, number: int, network: nn.Module, outputs: Tensor, ledger: Ledger) -> None:
        """Write a trained shadow."""
        tensors = {_WEIGHT + name: value for name, value in network.state_dict().items()}
        values = {"format": FORMAT, "key": self.key, "number": number, "ledger": ledger.to_json()}
        write_tensor_file(self.file(number), {**tensors, _OUTPUTS: outputs.detach().float().cpu()}, values)

    def load(self, number: int) -> Shadow:
        """What ``save`` wrote.

        Raises:
            CheckpointError: The file is missing, damaged, or of different shadows.
        """
        tensors, values = read_tensor_file(self.file(number))
        if not self._is_own(values, number) or _OUTPUTS not in tensors:
            raise CheckpointError(f"{self.file(number)} belongs to other shadows; remove it, and repeat the attack")
        try:
            ledger = Ledger.from_json(str(values.get("ledger")))
        except ValueError as error:
            raise CheckpointError(f"{self.file(number)} holds a damaged ledger: {error}; remove it") from error
        weights = {name.removeprefix(_WEIGHT): part for name, part in tensors.items() if name.startswith(_WEIGHT)}
        return Shadow(Reference(tensors[_OUTPUTS], self.included(number)), ledger, weights)

    def _is_own(self, values: Mapping[str, Any], number: int) -> bool:
        return (values.get("format"), values.get("key"), values.get("number")) == (FORMAT, self.key, number)

    @classmethod
    def claimed(cls, folder: Path, lock: FolderLock, config: Config, pool: Pool) -> Shadows:
        """The shadows in a folder, if they are of this configuration and pool; none yet in an empty folder.

        Args:
            folder: The folder.
            lock: Its lock.
            config: Configuration of the shadows.
            pool: The examples.

        Raises:
            ConfigError: The folder holds shadows of a different configuration or pool, or other files.
            CheckpointError: Its manifest is damaged, or of a different version.
        """
        settings: dict[str, Any] = json.loads(json.dumps(settings_by_path(config)))
        settings |= {"attacked training examples": pool.train, "attacked held-out examples": pool.held_out}
        manifest = folder / "shadows.json"
        if not lock.holds(manifest):
            if any(file.name != LOCK_NAME for file in folder.iterdir()):
                raise ConfigError(f"{folder} holds files but no {manifest.name}; choose an empty folder with --cache")
            key = secrets.token_hex(32)
            found = {"format": FORMAT, "key": key, "data": _digest(pool, key), "settings": settings}
            lock.write(manifest, json.dumps(found, indent=1) + "\n")
            return cls(folder, key, pool.size)
        return cls(folder, _key_of(manifest, settings, pool), pool.size)


def _key_of(manifest: Path, settings: Mapping[str, Any], pool: Pool) -> str:
    try:
        found = read_json(manifest)
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {checks.shown(found['format'])}, not {FORMAT!r}")
        key, data, known = str(found["key"]), str(found["data"]), dict(found["settings"])
        bytes.fromhex(key)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{manifest} is damaged or was written by a different version of dpmodel: {error}. Choose a different "
            "folder with --cache"
        ) from error
    changed = sorted(name for name in {*settings, *known} if settings.get(name) != known.get(name))
    if changed:
        name = changed[0]
        raise ConfigError(
            f"{manifest.parent} holds shadows of another attack: {name} is {settings.get(name)!r} here and "
            f"{known.get(name)!r} there. Choose a different folder with --cache"
        )
    if not hmac.compare_digest(_digest(pool, key), data):
        raise ConfigError(f"{manifest.parent} holds shadows of other data. Choose a different folder with --cache")
    return key


def _digest(pool: Pool, key: str) -> str:
    return keyed_digest([pool.data.x, pool.data.y], key)


def shadow_training(config: Config, pool: Pool, included: Bools) -> Training:
    """The training of a shadow, checked but not begun.

    Args:
        config: Configuration of the shadows.
        pool: The examples.
        included: Which it is trained on.

    Raises:
        ConfigError: The configuration cannot be trained on these.
    """
    splits = pool.splits(included)
    if len(splits.train) < config.training.batch_size:
        raise ConfigError(
            f"training.batch_size is {config.training.batch_size}, but a random half of {pool.size:,} attacked "
            f"examples holds {len(splits.train):,}: raise --examples, or lower it with --set training.batch_size=..."
        )
    return build_training(config, build_task(config, splits))


def fit_shadow(training: Training, stepped: Callable[[int], None], stop_reason: Callable[[], str | None]) -> bool:
    """Train a shadow without output or files; returns whether it was finished.

    Args:
        training: Its training.
        stepped: Is called with the number of steps done.
        stop_reason: Is called before each step; a reason ends the training there.
    """
    watcher = _Watcher(stepped, stop_reason)
    listeners = sorted([watcher, *training.callbacks], key=lambda each: isinstance(each, PrivateNormalisation))
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)  # delta and equal rows are those of the attacked training
        training.model.fit(training.loader, training.config.training.epochs, callbacks=listeners)
    return not watcher.stopped


class _Watcher(Silence):
    """Reports each step, and stops the training on request."""

    def __init__(self, stepped: Callable[[int], None], stop_reason: Callable[[], str | None]) -> None:
        self.stepped, self.stop_reason, self.stopped = stepped, stop_reason, False

    def on_train_step_begin(self, run: Run) -> None:
        """Stop before this step if there is a reason."""
        reason = self.stop_reason()
        if reason is not None:
            self.stopped = True
            run.stop(reason)

    def on_train_step_end(self, run: Run) -> None:
        """Report the step."""
        self.stepped(run.step)


@dataclass(frozen=True)
class ShadowJob:
    """The training of one shadow, in plain values that can be sent to a different process.

    Args:
        number: Number of the shadow.
        steps: Number of steps.
        shadows: The folder.
        settings: Configuration as YAML.
        examples: Most attacked examples of each kind.
    """

    number: int
    steps: int
    shadows: Shadows
    settings: str = field(repr=False)
    examples: int | None = None

    @property
    def directory(self) -> str:
        """The file of the shadow, below which nothing is locked: it is written at once."""
        return str(self.shadows.file(self.number))

    @property
    def label(self) -> str:
        """Number of the shadow."""
        return f"shadow {self.number}"

    def train(self, stepped: Stepped, stop_reason: Callable[[], str | None] = never) -> JobOutcome:
        """Train the shadow in this process."""
        try:
            config, pool = _prepared(self.settings, self.examples)
            training = shadow_training(config, pool, self.shadows.included(self.number))
            if not fit_shadow(training, lambda step: stepped(self.number, step), stop_reason):
                return JobOutcome(self, interrupted=True)
            network = training.model.network
            outputs = predictions(network, pool.data, training.task.device, INFERENCE_BATCH)
            self.shadows.save(self.number, network, outputs, training.model.ledger)
        except KeyboardInterrupt:
            return JobOutcome(self, interrupted=True)
        except Exception as error:
            return JobOutcome(self, fault_of(error))
        return JobOutcome(self)


#: Configuration and pool that this process trains shadows of, by the settings and the number of examples.
_KEPT: dict[tuple[str, int | None], tuple[Config, Pool]] = {}


def _prepared(settings: str, examples: int | None) -> tuple[Config, Pool]:
    if (settings, examples) not in _KEPT:
        source = "configuration of the shadows"
        config = checked_config(read_yaml(settings, source), source)
        pool = Pool.of(build_task(config).data, examples)
        _KEPT.clear()
        _KEPT[settings, examples] = _of_stated_size(config, pool.size // 2), pool
    return _KEPT[settings, examples]


def train_shadows(
    config: Config,
    pool: Pool,
    count: int,
    folder: Path,
    *,
    examples: int | None = None,
    processes: int = 1,
    watcher: Watcher,
) -> tuple[Shadows, list[JobOutcome]]:
    """Train the first ``count`` shadows, unless the folder holds them.

    Args:
        config: Configuration of the shadows.
        pool: The examples.
        count: Number of shadows.
        folder: Their folder; created if missing.
        examples: Most attacked examples of each kind, from which the pool was made.
        processes: Number of processes.
        watcher: Is notified of the progress.

    Returns:
        The shadows, and how each training of this call ended.

    Raises:
        ConfigError: Before any training: the configuration cannot be trained on the pool, or the folder is in use or
            holds other things.
    """
    config = with_threads(config, processes)
    settings = _to_read_pool(config).to_yaml()
    with FolderLock(folder) as lock:
        shadows = Shadows.claimed(folder, lock, config, pool)
        missing = [number for number in range(count) if not shadows.is_finished(number)]
        outcomes: list[JobOutcome] = []
        jobs: Sequence[PooledJob] = ()
        if missing:
            steps = shadow_training(config, pool, shadows.included(missing[0])).plan.steps
            jobs = [ShadowJob(number, steps, shadows, settings, examples) for number in missing]
        watcher.training(jobs, count - len(jobs))
        try:
            if jobs:
                _KEPT[settings, examples] = config, pool
                outcomes = run_jobs(jobs, processes, watcher)
        finally:
            _KEPT.clear()
        lock.require_in_place()
    return shadows, outcomes
