"""The training state: one file with everything that the next step of a training depends on; never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dpmodel.saving.checkpoint import Checkpoint, checkpoint_content, checkpoint_in
from dpmodel.saving.nest import pack_nest, unpack_nest
from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from monitors.errors import CheckpointError
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from dpmodel.planning.release import ReleasePlan
    from dpmodel.training.loop import TrainingLoop
    from mechanisms.rng import SecureGenerator

KEY = "training"


@dataclass(frozen=True)
class TrainingState:
    """A training that can go on where it stands.

    It is a checkpoint (``load_weights`` and ``load_checkpoint`` read the same file) and what a checkpoint leaves out.
    Streams of randomness are kept by their place, and only where a user's seed makes them reproducible: a secret stream
    is never written down, and a resumed training draws from a fresh one.

    Args:
        checkpoint: Weights and buffers, optimizer state, steps done.
        settings: What the training was; a training of other settings must not go on from here.
        journal_head: Digest of the release journal when the state was saved.
        first_step: Step number at which the call of ``fit`` began.
        first_partition: Number of its first partition on the ledger (shuffled batches).
        planned_steps: Step number at which it ends.
        epoch: Current epoch, from 1.
        losses: Training losses of the steps of the current epoch, not private.
        seconds: Time spent in it.
        loss: Loss of the last step.
        metrics: Latest validation metrics.
        history: Finished epochs, as ``History.to_dict``.
        ledger: Everything released so far, steps that were lost before included.
        statements: Statements of the privacy claims of the model's life.
        broken_steps: Steps in a row that were dominated by gradients that were not finite.
        clip: State of the clip mechanism.
        sampler: State of the sampler.
        streams: Places of the reproducible streams, in bytes.
        callbacks: Class and state of each callback that has a state, in order.
        randomness: State of torch's generators, which make dropout and the like; empty where they are secret.
    """

    checkpoint: Checkpoint
    settings: Mapping[str, Any]
    journal_head: str
    first_step: int
    first_partition: int
    planned_steps: int
    epoch: int
    losses: tuple[float, ...]
    seconds: float
    loss: float | None
    metrics: Mapping[str, float]
    history: Mapping[str, Any]
    ledger: Ledger
    statements: Sequence[Mapping[str, str]]
    broken_steps: int
    clip: Mapping[str, Any]
    sampler: Mapping[str, Any]
    streams: Mapping[str, int]
    callbacks: Sequence[tuple[str, Mapping[str, Any]]]
    randomness: Mapping[str, Tensor]

    @property
    def path(self) -> str:
        """Where it was read from."""
        return self.checkpoint.path

    @property
    def step(self) -> int:
        """Steps done over the model's life."""
        return self.checkpoint.info.step


def read_state(path: str | os.PathLike[str]) -> TrainingState:
    """Read a training state and check that it is whole.

    Raises:
        CheckpointError: Missing, truncated, changed, or a file of another kind; the path is named.
    """
    tensors, values = read_tensor_file(path)
    if KEY not in values:
        raise CheckpointError(
            f"{path} is a checkpoint, not a training state: it has the weights, but not all that a training needs to "
            "go on"
        )
    checkpoint = checkpoint_in(path, tensors, values)
    try:
        stored = unpack_nest(values[KEY], tensors)
        stored["losses"] = tuple(stored["losses"].tolist())
        stored["ledger"] = _ledger(stored.pop("rows"), stored.pop("notes"))
        return TrainingState(checkpoint=checkpoint, **stored)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} was written by another version of dpmodel: {error}") from error


@dataclass
class StateWriter:
    """Writes the state of one training, again and again.

    Args:
        path: The file; replaced as a whole each time.
        settings: What the training is.
    """

    path: str | os.PathLike[str]
    settings: Mapping[str, Any]
    _rows: list[str] = field(default_factory=list, init=False, repr=False)

    def write(self, loop: TrainingLoop, journal_head: str) -> None:
        """Save the state of ``loop`` between two steps, atomically and flushed to the disk.

        Raises:
            CheckpointError: Something in the state cannot be saved; it is named.
        """
        tensors, values = checkpoint_content(loop.run, with_digest=False)
        stored = {
            "settings": dict(self.settings),
            "journal_head": journal_head,
            "rows": _bytes(self._encoded(loop.run.ledger)),
            **_described(loop),
        }
        values[KEY] = pack_nest(stored, KEY, tensors, "the training")
        write_tensor_file(self.path, tensors, values)

    def _encoded(self, ledger: Ledger) -> str:
        # A decaying schedule has one row per step: each is encoded once, and the last again, since it may have grown.
        del self._rows[-1:]
        self._rows += [json.dumps(row) for row in ledger.row_dicts(len(self._rows))]
        return f"[{','.join(self._rows)}]"


def stateful(callbacks: Sequence[Any]) -> list[tuple[str, Any]]:
    """Class name and object of each callback that has a state to keep, in order."""
    named = [(type(entry).__name__, entry) for entry in callbacks if hasattr(entry, "state_dict")]
    return [(name, entry) for name, entry in named if entry.state_dict()]


def streams(plan: ReleasePlan) -> dict[str, SecureGenerator]:
    """The streams of randomness that the proof rests on, by what they are for."""
    owners = {"noise": plan.noise, "clip": plan.clip, "sampling": plan.sampler}
    found = {name: getattr(owner, "generator", None) for name, owner in owners.items()}
    return {name: generator for name, generator in found.items() if generator is not None}


def _described(loop: TrainingLoop) -> dict[str, Any]:
    run, progress = loop.run, loop.progress
    places = {name: generator.position for name, generator in streams(run.plan).items()}
    return {
        "first_step": run.first_step,
        "first_partition": run.plan.sampler.first_partition,
        "planned_steps": run.planned_steps,
        "epoch": run.epoch,
        "losses": torch.tensor(progress.losses, dtype=torch.float64, device="cpu"),
        "seconds": progress.seconds_so_far(),
        "loss": run.loss,
        "metrics": run.metrics,
        "history": run.history.to_dict(),
        "notes": run.ledger.notes,
        "statements": run.model.statements,
        "broken_steps": loop.step.broken_steps,
        "clip": run.plan.clip.state_dict(),
        "sampler": run.plan.sampler.state_dict(),
        "streams": {name: place for name, place in places.items() if place is not None},
        "callbacks": [(name, entry.state_dict()) for name, entry in stateful(tuple(loop.listeners))],
        "randomness": {} if run.plan.secret else _randomness(loop.device),
    }


def _randomness(device: torch.device) -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _ledger(rows: Tensor, notes: Sequence[str]) -> Ledger:
    return Ledger.from_rows(json.loads(np.asarray(rows).tobytes()), notes)
