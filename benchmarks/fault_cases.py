"""Faults of users, machines and attackers, each tried with dpmodel and with Opacus on the same small training.

    PYTHONPATH=. python benchmarks/fault_cases.py CASE dpmodel|opacus FOLDER [PHASE]

Prints one JSON object with what happened. ``faults.py`` runs all cases, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

ROWS, FEATURES, CLASSES, BATCH, EPOCHS, NOISE, BOUND = 64, 6, 3, 16, 3, 1.0, 1.0
STEPS = EPOCHS * (ROWS // BATCH)
DELTA = 1e-5

EachStep = Callable[["Training"], None]


class Training:
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

    def run(self) -> None:
        """Train to the end."""
        raise NotImplementedError

    def charged(self) -> int:
        """Releases that its accountant counts."""
        raise NotImplementedError

    def epsilon(self) -> float:
        """What it states at ``DELTA``."""
        raise NotImplementedError

    def stepped(self) -> None:
        self.released += 1
        with (self.folder / "trace").open("a", encoding="ascii") as stream:
            stream.write("released\n")
        if self.each_step is not None:
            self.each_step(self)

    @property
    def finite(self) -> bool:
        return all(bool(torch.isfinite(value).all()) for value in self.network.parameters())


class Ours(Training):
    """The training by ``dpmodel``."""

    name = "dpmodel"

    def run(self, *, resume: bool = False, kept: str = "run") -> None:
        from dpmodel import DPModel, NoiseMechanismsFactory, StateKeeper
        from dpmodel.callbacks.learning_rate import LearningRateScheduler

        noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=self.noise)
        self.model = DPModel(
            self.network, self.loss_fn, self.optimizer, norm_bound=BOUND, noise_mech=noise,
            sampling="poisson" if self.poisson else "shuffle",
        )  # fmt: skip
        keeper = StateKeeper(self.folder / kept, every_n_steps=4, resume=resume)
        hook = register_optimizer_step_post_hook(lambda optimizer, *_: self._seen(optimizer))
        callbacks = [LearningRateScheduler(self.schedule, interval="step")] if self.schedule else []
        try:
            self.model.fit(DataLoader(self.data, batch_size=self.batch), EPOCHS, callbacks=callbacks, keeper=keeper)
        finally:
            hook.remove()

    def _seen(self, optimizer: torch.optim.Optimizer) -> None:
        if optimizer is self.optimizer:
            self.stepped()

    def charged(self) -> int:
        return self.model.ledger.total

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
            self.stepped()
            if self.schedule is not None:
                self.schedule.step()

    def charged(self) -> int:
        return sum(steps for _, _, steps in self.engine.accountant.history)

    def epsilon(self) -> float:
        return self.engine.get_epsilon(DELTA)


def examples(rows: int = ROWS) -> TensorDataset:
    x = torch.randn(rows, FEATURES)
    return TensorDataset(x, (x @ torch.randn(FEATURES, CLASSES)).argmax(1))


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))


class Centred(nn.Module):
    """Subtracts the mean over the batch, so that examples are mixed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


def changed(row: int, column: int, value: float) -> TensorDataset:
    data = examples()
    data.tensors[0][row, column] = value
    return data


def step_outside(training: Training) -> None:
    if training.released == 3:
        optimizer = torch.optim.SGD(training.network.parameters(), lr=0.1)
        x, y = training.data.tensors
        training.network.zero_grad()
        nn.functional.cross_entropy(training.network(x), y).backward()
        optimizer.step()


def write_weights(training: Training) -> None:
    if training.released == 3:
        with torch.no_grad():
            for parameter in training.network.parameters():
                parameter.add_(training.data.tensors[0].mean())


def unfreeze(training: Training) -> None:
    if training.released == 3:
        for parameter in training.network.parameters():
            parameter.requires_grad_(True)


def half_frozen() -> nn.Module:
    network = linear()
    network[0].requires_grad_(False)
    return network


def tied() -> nn.Module:
    network = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Linear(FEATURES, FEATURES))
    network[2].weight = network[0].weight
    return network


class OneModel(nn.Module):
    """Adds what it has seen to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(FEATURES))
        self.inner = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += x.detach().sum(0)
        return self.inner(x)


#: Faults that change one argument of an ordinary training.
SIMPLE: dict[str, Callable[[], dict[str, Any]]] = {
    "batch_norm": lambda: {"network": nn.Sequential(linear(), nn.BatchNorm1d(CLASSES))},
    "mixing_layer": lambda: {"network": nn.Sequential(Centred(), linear())},
    "mixing_loss": lambda: {"loss_fn": lambda out, y: nn.functional.cross_entropy(out - out.mean(0), y)},
    "buffer_of_examples": lambda: {"network": OneModel()},
    "tied_weights": lambda: {"network": tied()},
    "infinite_input": lambda: {"data": changed(5, 0, float("inf"))},
    "huge_gradient": lambda: {"data": changed(5, 0, 1e38)},
    "repeated_rows": lambda: {"data": Subset(examples(), [0, *range(ROWS - 1)])},
    "labels_out_of_range": lambda: {"data": TensorDataset(torch.randn(ROWS, FEATURES), torch.full((ROWS,), CLASSES))},
    "batch_above_data": lambda: {"batch": 2 * ROWS},
    "fixed_order": lambda: {"poisson": False},
    "noise_nan": lambda: {"noise": float("nan")},
    "noise_negative": lambda: {"noise": -1.0},
    "learning_rate_nan": lambda: {"schedule": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, float("nan"))},
    "step_size_zero": lambda: {"schedule": lambda o: torch.optim.lr_scheduler.StepLR(o, 0)},
    "schedule_too_short": lambda: {"schedule": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=5)},
    "step_outside": lambda: {"each_step": step_outside},
    "weights_written": lambda: {"each_step": write_weights},
    "unfrozen_meanwhile": lambda: {"network": half_frozen(), "each_step": unfreeze},
    "user_seed": lambda: {},
}


def simple(case: str, kind: type[Training], folder: Path, phase: str) -> dict[str, Any]:
    training, error = kind(folder, **SIMPLE[case]()), None
    try:
        training.run()
    except Exception as fault:
        error = f"{type(fault).__name__}: {fault}"
    return facts(training, error)


def facts(training: Training, error: str | None) -> dict[str, Any]:
    try:
        charged, epsilon = training.charged(), training.epsilon()
    except Exception:  # refused before there was an accountant
        charged, epsilon = 0, 0.0
    return {
        "error": error, "released": training.released, "charged": charged, "epsilon": epsilon,
        "finite": training.finite, "steps": STEPS,
    }  # fmt: skip


def killed_and_resumed(case: str, kind: type[Training], folder: Path, phase: str) -> dict[str, Any]:
    """Kill -9 after 7 steps; the last save was after 4."""

    def kill(training: Training) -> None:
        if isinstance(training, Opacus) and training.released == 4:
            training.engine.save_checkpoint(
                path=folder / "saved", module=training.private, optimizer=training.private_optimizer
            )
        if training.released == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    training = kind(folder, each_step=kill if phase == "first" else None)
    error = None
    try:
        if phase == "first":
            training.run()
        elif isinstance(training, Ours):
            training.run(resume=True)
        else:
            training.run(checkpoint=folder / "saved")
    except Exception as fault:
        error = f"{type(fault).__name__}: {fault}"
    training.released = len((folder / "trace").read_text(encoding="ascii").splitlines())
    return facts(training, error)


def older_checkpoint(case: str, kind: type[Training], folder: Path, phase: str) -> dict[str, Any]:
    """Train to the end, restore the checkpoint of an earlier moment from a backup, and state epsilon."""
    import shutil

    def save(training: Training) -> None:
        if training.released != 6:
            return
        if isinstance(training, Opacus):
            training.engine.save_checkpoint(path=folder / "backup", module=training.private)
        else:
            shutil.copytree(folder / "run", folder / "backup")

    training = kind(folder, each_step=save)
    training.run()
    released, error = training.released, None
    again = kind(folder)
    try:
        if isinstance(again, Opacus):
            again.prepare()
            again.engine.load_checkpoint(path=folder / "backup", module=again.private)
        else:
            shutil.rmtree(folder / "run")
            shutil.copytree(folder / "backup", folder / "run")
            again.run(resume=True)
            released += again.released
    except Exception as fault:
        error = f"{type(fault).__name__}: {fault}"
    again.released = released
    return {**facts(again, error), "restored": True}


class Payload:
    """Pickled, it creates a file when it is loaded."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.target, "w")


def malicious_checkpoint(case: str, kind: type[Training], folder: Path, phase: str) -> dict[str, Any]:
    """Load a checkpoint of somebody else that runs code."""
    path, proof = folder / "checkpoint", folder / "code_was_run"
    torch.save({"module_state_dict": Payload(str(proof))}, path)
    return loading(kind, folder, path, {"code_run": proof.exists})


def damaged_checkpoint(case: str, kind: type[Training], folder: Path, phase: str) -> dict[str, Any]:
    """Load the own checkpoint after one bit of a weight was flipped on the disk."""
    training = kind(folder)
    path = folder / "checkpoint"
    if isinstance(training, Opacus):
        training.prepare()
        training.engine.save_checkpoint(path=path, module=training.private)
    else:
        from dpmodel import save_checkpoint

        save_checkpoint(path, training.network)
    content = bytearray(path.read_bytes())
    weight = training.network[0].weight.detach().numpy().tobytes()
    content[content.find(weight) + 3] ^= 0x40
    path.write_bytes(bytes(content))
    return loading(kind, folder, path, {})


def loading(kind: type[Training], folder: Path, path: Path, observed: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    training, error = kind(folder), None
    before = [value.clone() for value in training.network.parameters()]
    try:
        if isinstance(training, Opacus):
            training.prepare()
            training.engine.load_checkpoint(path=path, module=training.private)
        else:
            from dpmodel import load_checkpoint, load_param_into_net

            load_param_into_net(training.network, load_checkpoint(path))
    except Exception as fault:
        error = f"{type(fault).__name__}: {fault}"
    same = all(torch.equal(old, new) for old, new in zip(before, training.network.parameters(), strict=True))
    return {"error": error, "loaded": not same, **{name: look() for name, look in observed.items()}}


def noise_of(training: Training) -> torch.Tensor:
    """The update of one step on no data at all: only noise."""
    before = [value.detach().clone() for value in training.network.parameters()]
    training.run()
    now = training.network.parameters()
    return torch.cat([(new - old).detach().flatten() for old, new in zip(before, now, strict=True)])


def same_seed(case: str, kind: type[Training], folder: Path, phase: str) -> dict[str, Any]:
    """Two trainings after ``torch.manual_seed(0)``, the usual line of a script: is the noise the same?"""
    found = []
    for number in range(2):
        (folder / str(number)).mkdir()
        training = kind(folder / str(number))
        torch.manual_seed(0)
        found.append(noise_of(training))
    return {"error": None, "same_noise": bool(torch.equal(*found))}


def forked(case: str, kind: type[Training], folder: Path, phase: str) -> dict[str, Any]:
    """Parent and forked child train from the same state: is the noise the same?"""
    for number in range(2):
        (folder / str(number)).mkdir()
    trainings = [kind(folder / str(number)) for number in range(2)]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, pickle.dumps(noise_of(trainings[1]).tolist()))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        theirs = pickle.loads(stream.read())
    os.waitpid(child, 0)
    return {"error": None, "same_noise": noise_of(trainings[0]).tolist() == theirs}


#: Cases by name; the others change one argument of an ordinary training.
CASES: dict[str, Callable[[str, type[Training], Path, str], dict[str, Any]]] = {
    **dict.fromkeys(SIMPLE, simple),
    "user_seed": same_seed,
    "forked": forked,
    "killed_and_resumed": killed_and_resumed,
    "older_checkpoint": older_checkpoint,
    "malicious_checkpoint": malicious_checkpoint,
    "damaged_checkpoint": damaged_checkpoint,
}

LIBRARIES = {kind.name: kind for kind in (Ours, Opacus)}


def main() -> None:
    case, library, folder, *phase = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = CASES[case](case, LIBRARIES[library], Path(folder), phase[0] if phase else "")
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
