"""From a configuration to the objects of a training: the only module that knows both sides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dpmodel.callbacks import LearningRateScheduler
from dpmodel.callbacks.registry import build_callback
from dpmodel.config import Config, locating_errors
from dpmodel.data import DataSplits, load_dataset
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.loader import PrivateLoader
from dpmodel.losses import build_loss
from dpmodel.metrics import MetricSet
from dpmodel.model import DPModel
from dpmodel.nets import build_network
from dpmodel.optimizers import build_optimizer
from dpmodel.planning.from_config import make_clip, make_noise
from dpmodel.planning.training_plan import TrainingPlan, plan_training
from dpmodel.preflight.configured import require_known_names
from dpmodel.preflight.network import fix
from dpmodel.preflight.task import require_metrics_fit, require_network_fits, require_stated_size
from mechanisms.engines.base import ENGINES
from monitors.errors import ConfigError
from monitors.factory import PrivacyMonitorFactory
from monitors.spent import epsilon_text, privacy_spent


@dataclass(frozen=True)
class Task:
    """What a configuration trains or evaluates: data, network and loss, on a device.

    Args:
        config: The configuration; it states the number of training examples.
        data: Training and test data.
        network: With its initial weights.
        loss_fn: The loss.
        device: Where it all is.
    """

    config: Config
    data: DataSplits
    network: nn.Module
    loss_fn: nn.Module
    device: torch.device

    def of(self, config: Config) -> Task:
        """The same data, network and loss for another ``config``, which must state the same of them."""
        stated = config.data.model_copy(update={"num_examples": len(self.data.train)})
        return replace(self, config=config.model_copy(update={"data": stated}))

    def placed(self, examples: InMemoryDataset) -> InMemoryDataset:
        """``examples`` on the device where they are to be kept there."""
        return examples.to(self.device) if self.config.performance.in_memory else examples


@dataclass(frozen=True)
class Training:
    """A training that is ready to start; nothing has been released yet.

    Args:
        task: Data, network and loss.
        plan: What it will release.
        model: The model.
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
        """The configuration as it is carried out."""
        return self.plan.config

    @property
    def test_data(self) -> InMemoryDataset:
        """The test examples, where the configuration wants them."""
        return self.task.placed(self.task.data.test)


def build_task(config: Config) -> Task:
    """Read the data and build network and loss.

    Raises:
        ConfigError: A name, argument or combination is wrong; with file and line.
        DataError: Data are missing, damaged, or contradict the configuration.
    """
    device = _device(config)
    if config.performance.threads is not None:
        torch.set_num_threads(config.performance.threads)
    with locating_errors(config, "data"):
        data = load_dataset(**config.data.reader_arguments)
    require_stated_size(config, data)
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
    network.to(device)
    require_network_fits(config, network, data, device)
    require_metrics_fit(config, data)
    return Task(config, data, network, loss_fn, device).of(config)


def build_training(config: Config, task: Task | None = None) -> Training:
    """Everything that ``dpmodel train`` needs, checked, before any budget is spent.

    Args:
        config: The configuration.
        task: A task of the same data, network and loss that was built before; default: build it.

    Raises:
        ConfigError: A setting is wrong, or the privacy target cannot be met; with file and line.
        DataError: Data are missing, damaged, or contradict the configuration.
    """
    require_known_names(config)
    task = build_task(config) if task is None else task.of(config)
    plan = plan_training(task.config, len(task.data.train))
    with locating_errors(config, "privacy.accountant"):
        # An accountant that has no rule for what this training releases must say so now, not after the first step.
        plan.privacy_spent(epochs=1)
    _require_one_step(plan)
    model = build_model(plan.config, task)
    callbacks = [*_schedule(config), *_monitor(config), *_user_callbacks(config)]
    return Training(task, plan, model, _loader(config, task), tuple(callbacks))


def build_model(config: Config, task: Task) -> DPModel:
    """The model of a configuration whose noise multiplier is stated."""
    with locating_errors(config, "optimizer"):
        optimizer = build_optimizer(config.optimizer.name, task.network.parameters(), **config.optimizer.options)
    with locating_errors(config, "training.metrics"):
        MetricSet(list(config.training.metrics), loss_fn=task.loss_fn)
    with locating_errors(config, "performance.engine"):
        if config.performance.engine != "auto":
            ENGINES.get(config.performance.engine)
    noise = None if config.privacy.noise is None else make_noise(config)
    clip = make_clip(config)
    with locating_errors(config, "privacy"):
        return DPModel(
            task.network,
            task.loss_fn,
            optimizer,
            micro_batches=config.privacy.micro_batches,
            norm_bound=config.privacy.norm_bound,
            noise_mech=noise,
            clip_mech=clip,
            metrics=list(config.training.metrics),
            sampling=config.privacy.sampling,
            engine=config.performance.engine,
            physical_batch_size=config.performance.physical_batch_size,
            precision=config.performance.precision,
            timed_plans=config.performance.timed_plans,
            isolation=config.performance.isolation,
            device=task.device,
            seed=config.privacy.sampling_seed,
        )


def _loader(config: Config, task: Task) -> PrivateLoader:
    performance = config.performance
    with locating_errors(config, "training.batch_size"):
        return PrivateLoader(
            task.placed(task.data.train),
            config.training.batch_size,
            sampling=config.privacy.sampling,
            num_workers=performance.workers,
            pin_memory=not performance.in_memory and task.device.type == "cuda",
        )


def _schedule(config: Config) -> list[Any]:
    schedule = config.optimizer.schedule
    if schedule is None:
        return []
    with locating_errors(config, "optimizer.schedule"):
        return [LearningRateScheduler(schedule.name, schedule.interval, **schedule.options)]


def _monitor(config: Config) -> list[Any]:
    privacy = config.privacy
    if privacy.noise is None:
        return []
    with locating_errors(config, "privacy.monitor"):
        return [
            PrivacyMonitorFactory.create(
                privacy.accountant,
                target_delta=privacy.delta,
                max_eps=privacy.monitor.max_eps,
                per_print_times=privacy.monitor.per_print_times,
            )
        ]


def _user_callbacks(config: Config) -> list[Any]:
    built = []
    for index, callback in enumerate(config.callbacks):
        with locating_errors(config, f"callbacks.{index}"):
            built.append(build_callback(callback.name, **callback.options))
    return built


def _device(config: Config) -> torch.device:
    name = config.performance.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = f"{config.where('performance.device')}: performance.device"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{where}: {name!r} cannot be used here ({reason}); use 'auto' or 'cpu'") from error
    return device


def _require_one_step(plan: TrainingPlan) -> None:
    privacy = plan.config.privacy
    most = privacy.monitor.max_eps
    if most is None or privacy.noise is None:
        return
    first = privacy_spent(plan.ledger(1), privacy.delta, privacy.accountant).epsilon
    if first > most:
        raise ConfigError(
            f"{plan.config.where('privacy.monitor.max_eps')}: not even one step fits into "
            f"privacy.monitor.max_eps={most:g}: the first spends epsilon {epsilon_text(first)} at delta "
            f"{privacy.delta:g}. Raise it or the noise multiplier, or lower the batch size"
        )
