"""The same small training by dpmodel and by Opacus, and what an observer outside of it sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset, TensorDataset

ROWS, FEATURES, CLASSES, BATCH, EPOCHS, NOISE, BOUND = 64, 6, 3, 16, 3, 1.0, 1.0
STEPS = EPOCHS * (ROWS // BATCH)
DELTA = 1e-5

EachStep = Callable[["Training"], None]


class Training(ABC):
    """One training by one library, and what an observer outside of it sees.

    Args:
        folder: Where it may keep files.
        network, loss_fn, data: What is trained, on which examples.
        optimizer, schedule: Make optimizer and scheduler.
        each_step: Called after each step with the training.
        noise: Noise multiplier.
        batch: Expected batch size.
        poisson: False: batches in a fixed order.
    """

    name = ""

    def __init__(
        self,
        folder: Path,
        *,
        network: nn.Module | None = None,
        loss_fn: Callable[..., Any] | None = None,
        data: Dataset[Any] | None = None,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer] | None = None,
        schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
        each_step: EachStep | None = None,
        noise: float = NOISE,
        batch: int = BATCH,
        poisson: bool = True,
    ) -> None:
        torch.manual_seed(0)
        self.folder, self.data, self.noise, self.batch, self.poisson = folder, data or examples(), noise, batch, poisson
        self.network = network or linear()
        self.loss_fn = loss_fn or nn.CrossEntropyLoss()
        self.optimizer = (optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1)))(
            self.network.parameters()
        )
        self.schedule = schedule(self.optimizer) if schedule else None
        self.each_step = each_step
        self.released = 0

    @abstractmethod
    def run(self) -> None:
        """Train to the end."""

    @abstractmethod
    def charged(self) -> int:
        """Releases that its accountant counts."""

    @abstractmethod
    def epsilon(self) -> float:
        """What it states at ``DELTA``."""

    def seen(self) -> None:
        self.released += 1
        with (self.folder / "trace").open("a", encoding="ascii") as stream:
            stream.write("released\n")

    def stepped(self) -> None:
        if self.each_step is not None:
            self.each_step(self)

    @property
    def finite(self) -> bool:
        return all(bool(torch.isfinite(value).all()) for value in self.network.parameters())


class Ours(Training):
    """The training by ``dpmodel``."""

    name = "dpmodel"

    def run(self, *, resume: bool = False, kept: str = "run") -> None:
        from dpmodel import Callback, DPModel, NoiseMechanismsFactory, StateKeeper
        from dpmodel.callbacks.learning_rate import LearningRateScheduler

        class EachStep(Callback):
            def on_train_step_end(_, run: Any) -> None:  # noqa: N805
                self.stepped()

        noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=self.noise)
        self.model = DPModel(
            self.network, self.loss_fn, self.optimizer, norm_bound=BOUND, noise_mech=noise,
            sampling="poisson" if self.poisson else "shuffle",
        )  # fmt: skip
        keeper = StateKeeper(self.folder / kept, every_n_steps=4, resume=resume)
        hook = register_optimizer_step_post_hook(lambda optimizer, *_: self._seen(optimizer))
        schedule = [LearningRateScheduler(self.schedule, interval="step")] if self.schedule else []
        try:
            self.model.fit(
                DataLoader(self.data, batch_size=self.batch), EPOCHS, callbacks=[*schedule, EachStep()], keeper=keeper
            )
        finally:
            hook.remove()

    def _seen(self, optimizer: torch.optim.Optimizer) -> None:
        if optimizer is self.optimizer:
            self.seen()

    def charged(self) -> int:
        return self.model.ledger.total - len(self.model.ledger.violations)

    def epsilon(self) -> float:
        return self.model.privacy_spent(DELTA).epsilon


class Opacus(Training):
    """The training by Opacus, with the loop of its tutorials."""

    name = "opacus"

    def run(self, *, checkpoint: Path | None = None) -> None:
        self.prepare()
        if checkpoint is not None:
            self.engine.load_checkpoint(path=checkpoint, module=self.private, optimizer=self.private_optimizer)
        for _ in range(EPOCHS):
            self.epoch()

    def prepare(self) -> None:
        from opacus import PrivacyEngine

        self.engine = PrivacyEngine()
        self.private, self.private_optimizer, self.loader = self.engine.make_private(
            module=self.network,
            optimizer=self.optimizer,
            data_loader=DataLoader(self.data, batch_size=self.batch),
            noise_multiplier=self.noise,
            max_grad_norm=BOUND,
            poisson_sampling=self.poisson,
        )
        self.private.train()

    def epoch(self) -> None:
        for x, y in self.loader:
            self.private_optimizer.zero_grad()
            self.loss_fn(self.private(x), y).backward()
            self.private_optimizer.step()
            self.seen()
            self.stepped()
            if self.schedule is not None:
                self.schedule.step()

    def charged(self) -> int:
        return sum(steps for _, _, steps in self.engine.accountant.history)

    def epsilon(self) -> float:
        epsilon: float = self.engine.get_epsilon(DELTA)
        return epsilon


def examples(rows: int = ROWS) -> TensorDataset:
    x = torch.randn(rows, FEATURES)
    return TensorDataset(x, (x @ torch.randn(FEATURES, CLASSES)).argmax(1))


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))
