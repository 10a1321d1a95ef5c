"""Builds the objects of a training from a configuration: the only module that knows both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpmodel.callbacks import LearningRateScheduler
from dpmodel.callbacks.registry import build_callback
from dpmodel.config import Config, locating_errors
from dpmodel.config.identity import settings_by_path
from dpmodel.config.sections import FeaturesSection
from dpmodel.data import DataSplits, load_dataset
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.input_form import InputForm
from dpmodel.data.loader import PrivateLoader
from dpmodel.data.locations import cache_folder
from dpmodel.distributed.launch import launched_processes, local_rank
from dpmodel.features import build_features, extract_splits
from dpmodel.losses import build_loss
from dpmodel.metrics import MetricSet
from dpmodel.model import DPModel
from dpmodel.nets import build_network
from dpmodel.optimizers import build_optimizer
from dpmodel.planning.release import ReleasePlan
from dpmodel.planning.training_plan import TrainingPlan, plan_training
from dpmodel.preflight.configured import require_known_names
from dpmodel.preflight.network import fix
from dpmodel.preflight.task import (
    locating_refusals,
    require_metrics_fit,
    require_network_fits,
    require_stated_classes,
    require_stated_size,
)
from dpmodel.statistics.normalisation import NormalisedNetwork, PrivateNormalisation
from mechanisms.engines.base import ENGINES
from monitors.errors import ConfigError
from monitors.factory import PrivacyMonitorFactory
from monitors.ledger import Ledger
from monitors.spent import epsilon_text, privacy_spent

#: The setting that keeps the target that the noise multiplier was solved for.
SOLVED_FOR = "privacy.target_epsilon (solved for)"


@dataclass(frozen=True)
class Task:
    """What a configuration trains or evaluates: data, network and loss, on a device.

    Args:
        config: The configuration; it states the number of training examples if that is public.
        data: Training and test data.
        network: With its initial weights.
        loss_fn: The loss.
        device: Where network and loss run.
        inputs: The form of the inputs as read, before any features are computed.
    """

    config: Config
    data: DataSplits
    network: nn.Module
    loss_fn: nn.Module
    device: torch.device
    inputs: InputForm

    def of(self, config: Config) -> Task:
        """The same data, network and loss for a different ``config``, which must describe them in the same way."""
        return replace(self, config=_with_size(config, self.data))

    def placed(self, examples: InMemoryDataset) -> InMemoryDataset:
        """``examples``, on the device if the configuration keeps the data there."""
        return examples.to(self.device) if self.config.performance.in_memory else examples

    def loader(self) -> PrivateLoader:
        """Private batches of the training data."""
        config, performance = self.config, self.config.performance
        with locating_errors(config, "training.batch_size"):
            return PrivateLoader(
                self.placed(self.data.train),
                config.training.batch_size,
                sampling=config.privacy.sampling,
                num_examples_public=config.privacy.num_examples_public,
                num_workers=performance.workers,
                pin_memory=not performance.in_memory and self.device.type == "cuda",
            )


@dataclass(frozen=True)
class Training:
    """A training that is ready to start; nothing has been released yet.

    Args:
        task: Data, network and loss.
        plan: What it will release.
        model: The model, which trains with the mechanisms of ``plan``.
        loader: Private batches.
        callbacks: Schedule, monitor and the configuration's own callbacks, in this order.
    """

    task: Task
    plan: TrainingPlan
    model: DPModel
    loader: PrivateLoader
    callbacks: tuple[Any, ...]

    @property
    def config(self) -> Config:
        """The configuration with its noise multiplier solved."""
        return self.plan.config

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on, by path; a training may be resumed only with equal settings."""
        return {**settings_by_path(self.config), SOLVED_FOR: self.plan.target_epsilon}

    @property
    def resolved_yaml(self) -> str:
        """``config`` as YAML, with the target epsilon in a comment."""
        target = self.plan.target_epsilon
        lines = [f"# resolved from {Path(self.config.source).name}: every default is written out"]
        if target is not None:
            lines.append(f"# noise_multiplier was solved for target_epsilon {target:g}")
        return "\n".join([*lines, self.config.to_yaml()])

    @property
    def test_data(self) -> InMemoryDataset:
        """The test examples, placed as the configuration asks."""
        return self.task.placed(self.task.data.test)


def build_task(config: Config, data: DataSplits | None = None, *, private: bool = True) -> Task:
    """Read the data and build network and loss.

    Args:
        config: The configuration.
        data: Data in place of those of the configuration, with any features computed. Default: read them.
        private: Whether the network is to be trained with privacy; layers that cannot be are then refused.

    Raises:
        ConfigError: A name, argument or combination is wrong; with file and line.
        DataError: Data are missing, damaged, or contradict the configuration.
    """
    with locating_errors(config, "performance.device"):
        device = _device(config.performance.device)
    if config.performance.threads is not None:
        torch.set_num_threads(config.performance.threads)
    data, inputs = read_data(config, device) if data is None else (data, InputForm.of(data))
    with locating_errors(config, "network"):
        network = build_network(
            config.network.name,
            config.network.module,
            seed=config.training.seed,
            defaults=data.network_defaults(),
            **config.network.options,
        )
        network = fix(network) if config.network.fix else network
    with locating_errors(config, "loss"):
        loss_fn = build_loss(config.loss.name, **config.loss.options)
    if config.normalise is not None:
        with locating_errors(config, "normalise"):
            if not data.train.transform_batch(data.train.x[:1]).is_floating_point():
                raise ValueError(f"inputs of {data.train.x.dtype} cannot be normalised; remove normalise")
            network = NormalisedNetwork(network, data.example_shape, config.normalise.whitening)
    network.to(device)
    require_network_fits(config, network, data, device, private=private)
    require_metrics_fit(config, data)
    return Task(_with_size(config, data), data, network, loss_fn, device, inputs)


def read_data(config: Config, device: torch.device) -> tuple[DataSplits, InputForm]:
    """The data of a configuration, with its features in place of the inputs, and the form of the inputs as read.

    Args:
        config: The configuration.
        device: Computes the features.

    Raises:
        ConfigError: A name, argument or combination is wrong; with file and line.
        DataError: Data are missing, damaged, or contradict the configuration.
    """
    with locating_errors(config, "data"):
        data = load_dataset(**config.data.reader_arguments)
    require_stated_size(config, data)
    inputs = InputForm.of(data)
    if config.features is not None:
        data = _with_features(config.features, config, data, device)
    return data, inputs


def _with_features(section: FeaturesSection, config: Config, data: DataSplits, device: torch.device) -> DataSplits:
    """The data with features in place of the inputs, from the cache if it has them."""
    facts = {**data.network_defaults(), "example_shape": data.example_shape}
    with locating_errors(config, "features"), locating_refusals(config, "features"):
        network = build_features(section.name, facts, **section.options).to(device)
        cache = cache_folder() if section.cache else None
        return extract_splits(network, data, cache=cache, batch_size=section.batch_size)


def _with_size(config: Config, data: DataSplits) -> Config:
    """The configuration with the number of training examples stated, if it is public."""
    if config.privacy.num_examples_public is not None:
        return config  # the run folder must not state the true number
    stated = config.data.model_copy(update={"num_examples": len(data.train)})
    return config.model_copy(update={"data": stated})


def build_training(config: Config, task: Task | None = None, *, resumed: bool = False) -> Training:
    """Everything that ``dpmodel train`` needs, checked, before any budget is spent.

    Args:
        config: The configuration.
        task: A task with the same data, network and loss; default: build it.
        resumed: Whether a saved state will be restored; its ledger holds the releases of ``privacy.spent`` already.

    Raises:
        ConfigError: A setting is wrong, or the privacy target cannot be met; with file and line.
        DataError: Data are missing, damaged, or contradict the configuration.
    """
    require_known_names(config)
    task = build_task(config) if task is None else task.of(config)
    with locating_errors(config, "data"):
        require_stated_classes(task.data, config.privacy.num_examples_public)
    plan = plan_training(task.config, len(task.data.train))
    with locating_errors(config, "privacy.accountant"):
        # An accountant without a rule for these releases must say so now, not after the first step.
        plan.privacy_spent(epochs=1)
    if plan.config.privacy.monitor.max_eps is not None:
        _require_one_step(plan, plan.config.privacy.monitor.max_eps)
    ledger, normalise = plan.before, config.normalise
    callbacks = tuple(_callbacks(config))
    if normalise is not None:
        ledger = ledger.head(ledger.total - normalise.ledger.total)
        with locating_errors(config, "normalise"):
            callbacks = callbacks if resumed else (PrivateNormalisation(task.data.train, normalise), *callbacks)
    if len(ledger):
        plan.release.noise.spent_before = ledger.copy()
    model = build_model(task, plan.release, None if resumed or not len(ledger) else ledger.copy())
    return Training(task, plan, model, task.loader(), callbacks)


def build_model(task: Task, release: ReleasePlan, ledger: Ledger | None = None) -> DPModel:
    """The model of a task; it trains with the mechanisms of ``release``, and its ledger continues ``ledger``."""
    config, views = task.config, task.config.augmentation
    with locating_errors(config, "optimizer"):
        optimizer = build_optimizer(config.optimizer.name, task.network.parameters(), **config.optimizer.options)
    with locating_errors(config, "training.metrics"):
        MetricSet(list(config.training.metrics), loss_fn=task.loss_fn)
    with locating_errors(config, "performance.engine"):
        if config.performance.engine != "auto":
            ENGINES.get(config.performance.engine)
    with locating_errors(config, "privacy"):
        return DPModel(
            task.network,
            task.loss_fn,
            optimizer,
            micro_batches=config.privacy.micro_batches,
            norm_bound=config.privacy.norm_bound,
            noise_mech=release.noise,
            clip_mech=release.clip,
            metrics=list(config.training.metrics),
            sampling=config.privacy.sampling,
            engine=config.performance.engine,
            physical_batch_size=config.performance.physical_batch_size,
            precision=config.performance.precision,
            timed_plans=config.performance.timed_plans,
            static_shapes=config.performance.static_shapes,
            cuda_graphs=config.performance.cuda_graphs,
            isolation=config.performance.isolation,
            augmentation=views and views.named,
            augmentation_multiplicity=views.multiplicity if views else 1,
            device=task.device,
            seed=config.privacy.sampling_seed,
            ledger=ledger,
        )


def _callbacks(config: Config) -> Iterator[Any]:
    """Schedule, monitor and the configuration's own callbacks, in this order."""
    schedule, privacy = config.optimizer.schedule, config.privacy
    if schedule is not None:
        with locating_errors(config, "optimizer.schedule"):
            yield LearningRateScheduler(schedule.name, schedule.interval, **schedule.options)
    if privacy.noise is not None:
        with locating_errors(config, "privacy.monitor"):
            yield PrivacyMonitorFactory.create(
                privacy.accountant,
                target_delta=privacy.delta,
                max_eps=privacy.monitor.max_eps,
                per_print_times=privacy.monitor.per_print_times,
            )
    for index, callback in enumerate(config.callbacks):
        with locating_errors(config, f"callbacks.{index}"):
            yield build_callback(callback.name, **callback.options)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] == "gpu":
        cuda = name.replace("gpu", "cuda", 1)
        raise ValueError(f"unknown device {name!r}; did you mean {cuda!r}? Or use 'auto' or 'cpu'")
    if name == "cuda" and launched_processes() > 1:
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name!r} cannot be used here ({reason}); use 'auto' or 'cpu'") from error
    return device


def _require_one_step(plan: TrainingPlan, most: float) -> None:
    privacy = plan.config.privacy
    if privacy.noise is None:
        return
    first = privacy_spent(plan.ledger(1), privacy.delta, privacy.accountant).epsilon
    if first > most:
        raise ConfigError(
            f"{plan.config.where('privacy.monitor.max_eps')}: not even one step fits into "
            f"privacy.monitor.max_eps={most:g}: the first spends epsilon {epsilon_text(first)} at delta "
            f"{privacy.delta:g}. Raise max_eps or the noise multiplier, or lower the batch size"
        )
