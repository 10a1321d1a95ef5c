"""Faults of users, machines and attackers, each tried with dpmodel and with Opacus on the same small training.

    PYTHONPATH=. python benchmarks/fault_cases.py CASE dpmodel|opacus FOLDER [PHASE]

Prints one JSON object with what happened. ``faults.py`` runs all cases, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fault_trainings import CLASSES, FEATURES, ROWS, STEPS, Opacus, Ours, Training, examples, linear
from torch import nn
from torch.utils.data import Subset, TensorDataset


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
        x, y = training.data[:]
        training.network.zero_grad()
        nn.functional.cross_entropy(training.network(x), y).backward()
        optimizer.step()


def write_weights(training: Training) -> None:
    if training.released == 3:
        with torch.no_grad():
            for parameter in training.network.parameters():
                parameter.add_(training.data[:][0].mean())


def unfreeze(training: Training) -> None:
    if training.released == 3:
        for parameter in training.network.parameters():
            parameter.requires_grad_(True)


def half_frozen() -> nn.Module:
    network = linear()
    network.get_submodule("0").requires_grad_(False)
    return network


def tied() -> nn.Module:
    network = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Linear(FEATURES, FEATURES))
    network[2].weight = network[0].weight
    return network


class Summing(nn.Module):
    """Adds what it has seen to a buffer."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(FEATURES))
        self.inner = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += x.detach().sum(0)
        scores: torch.Tensor = self.inner(x)
        return scores


#: Faults that change one argument of an ordinary training.
SIMPLE: dict[str, Callable[[], dict[str, Any]]] = {
    "batch_norm": lambda: {"network": nn.Sequential(linear(), nn.BatchNorm1d(CLASSES))},
    "mixing_layer": lambda: {"network": nn.Sequential(Centred(), linear())},
    "mixing_loss": lambda: {"loss_fn": lambda out, y: nn.functional.cross_entropy(out - out.mean(0), y)},
    "buffer_of_examples": lambda: {"network": Summing()},
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
        elif isinstance(training, Opacus):
            training.run(checkpoint=folder / "saved")
    except Exception as fault:
        error = f"{type(fault).__name__}: {fault}"
    training.released = len((folder / "trace").read_text(encoding="ascii").splitlines())
    return facts(training, error)


def older_checkpoint(case: str, kind: type[Training], folder: Path, phase: str) -> dict[str, Any]:
    """Train to the end, restore the checkpoint of an earlier moment from a backup, and state epsilon."""

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
        elif isinstance(again, Ours):
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
    weight = training.network.get_parameter("0.weight").detach().numpy().tobytes()
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
