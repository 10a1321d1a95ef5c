"""The training state: one file with everything that the next step of a training depends on; never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dpmodel.saving.checkpoint import Checkpoint, checkpoint_content, checkpoint_in
from dpmodel.saving.nest import pack_nest, unpack_nest
from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from monitors.errors import CheckpointError
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from dpmodel.training.loop import TrainingLoop

KEY = "training"

#: States of other formats are refused. The first format stated none.
FORMAT = "dpmodel-training-state/2"


@dataclass(frozen=True)
class TrainingState:
    """A training that can be resumed.

    The file is also a checkpoint: ``load_weights`` and ``load_checkpoint`` read it. A secret stream of randomness is
    never written down, and a resumed training draws from a fresh one.

    Args:
        checkpoint: Weights and buffers, optimizer state, steps done.
        settings: What the training was; a training with other settings must not resume from here.
        journal_head: Digest of the release journal when the state was saved.
        ledger: Everything released so far, including steps that were lost before.
        loop: ``TrainingLoop.state_dict()``: the nest of the states of its parts.
    """

    checkpoint: Checkpoint
    settings: Mapping[str, Any]
    journal_head: str
    ledger: Ledger
    loop: Mapping[str, Any]

    @property
    def path(self) -> str:
        """Where it was read from."""
        return self.checkpoint.path

    @property
    def step(self) -> int:
        """Steps done over the model's life."""
        return self.checkpoint.info.step

    @property
    def run(self) -> Mapping[str, Any]:
        """``Run.state_dict()``."""
        state: Mapping[str, Any] = self.loop["run"]
        return state


def read_state(path: str | os.PathLike[str]) -> TrainingState:
    """Read a training state and check that it is complete.

    Raises:
        CheckpointError: Missing, truncated, changed, or a file of another kind or format; the path is named.
    """
    tensors, values = read_tensor_file(path)
    if KEY not in values:
        raise CheckpointError(
            f"{path} is a checkpoint, not a training state: it holds the weights, but not everything that a training "
            "needs to be resumed"
        )
    checkpoint = checkpoint_in(path, tensors, values)
    try:
        stored = unpack_nest(values[KEY], tensors)
        found = stored.pop("format", "dpmodel-training-state/1")
        if found != FORMAT:
            raise CheckpointError(
                f"{path} has the format {found!r}, and this version of dpmodel reads {FORMAT!r}. Resume with the "
                "version that saved it, or train in another folder and keep this one: its releases count for the data"
            )
        rows, notes = stored.pop("rows"), stored.pop("notes")
        ledger = Ledger.from_rows(json.loads(np.asarray(rows).tobytes()), notes)
        return TrainingState(checkpoint, ledger=ledger, **stored)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
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
        ledger = loop.run.ledger
        tensors, values = checkpoint_content(loop.run, with_digest=False)
        stored = {
            "format": FORMAT,
            "settings": dict(self.settings),
            "journal_head": journal_head,
            "rows": torch.frombuffer(bytearray(self._encoded(ledger).encode()), dtype=torch.uint8),
            "notes": ledger.notes,
            "loop": loop.state_dict(),
        }
        values[KEY] = pack_nest(stored, KEY, tensors, "the training")
        write_tensor_file(self.path, tensors, values)

    def _encoded(self, ledger: Ledger) -> str:
        # A decaying schedule has one row per step: each is encoded once, except the last, which may have grown.
        del self._rows[-1:]
        self._rows += [json.dumps(row) for row in ledger.row_dicts(len(self._rows))]
        return f"[{','.join(self._rows)}]"
