"""The training state: one file with all that the next step depends on (never pickle), and what resuming requires."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dpmodel.saving.checkpoint import Checkpoint, checkpoint_content, checkpoint_in
from dpmodel.saving.form import require_charged, require_form
from dpmodel.saving.nest import pack_nest, unpack_nest
from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from monitors import checks
from monitors.errors import CheckpointError
from monitors.ledger import Ledger
from monitors.untrusted import MAX_LEDGER_BYTES, parse_json

if TYPE_CHECKING:
    from dpmodel.callbacks.base import CallbackList
    from dpmodel.training.loop import TrainingLoop
    from dpmodel.training.run import Run
    from monitors.events import PrivacyEvent

KEY = "training"

#: Where the identities of the releases are: beside the state, so that an earlier version reads it too.
_ORIGINS = "origins"

#: States of other formats are refused. The first format stated none.
FORMAT = "dpmodel-training-state/4"

#: Accompanies every epsilon that includes lost steps.
LOST_NOTE = (
    "steps were released and lost when a process was killed: this figure includes them, although the model contains "
    "nothing of them"
)

#: Why a resumed training stops before its first step.
CANNOT_CONTINUE = (
    "to continue the interrupted epoch would repeat steps that were lost when a process was killed, and charge them "
    "twice: that exceeds a limit. Raise the limit, or keep these weights"
)

#: Ends the refusal of a state that belongs to a different training.
WHAT_TO_DO = "Resume with the settings of the run, or start again in a different folder (--output)"

MAX_DIFFERENCES = 5
COMPARED_RELEASES = 64
_DIGEST = "planned releases (digest of some)"
_MISSING = object()


@dataclass(frozen=True)
class TrainingState:
    """A training that can be resumed.

    The file is also a checkpoint: ``load_weights`` and ``load_checkpoint`` read it. A secret stream of randomness is
    never written down, and a resumed training draws from a fresh one.

    Args:
        checkpoint: Weights and buffers, optimizer state, steps done.
        settings: The settings of the training; a training with different settings must not resume from here.
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

    def resume(self, loop: TrainingLoop) -> None:
        """Restore callbacks, counters, weights and optimizer of a training that begins, its run restored before."""
        loop.load_state_dict(self.loop)
        # After the schedules, which set the first learning rate when the training begins.
        self.checkpoint.restore(loop.run.network, loop.run.optimizer)
        loop.step.guard.protected(self.step)


def read_state(path: str | os.PathLike[str]) -> TrainingState:
    """Read a training state and check that it is complete.

    Raises:
        CheckpointError: Missing, truncated, changed, or a file of a different kind or format; the path is named.
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
                "version that saved it, or train in a different folder and keep this one: its releases count for the "
                "data"
            )
        rows, notes = stored.pop("rows"), stored.pop("notes")
        ledger = Ledger.from_rows(_decoded_rows(rows), notes, values.get(_ORIGINS))
        state = TrainingState(checkpoint, ledger=ledger, **stored)
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} was written by a different version of dpmodel: {checks.shortened(str(error))}"
        ) from error
    require_form(state)
    return state


@dataclass
class StateWriter:
    """Saves the state of one training repeatedly.

    Args:
        path: The file; replaced as a whole each time.
        settings: The settings of the training.
    """

    path: str | os.PathLike[str]
    settings: Mapping[str, Any]
    _encoder: RowsEncoder = field(default_factory=lambda: RowsEncoder(), init=False, repr=False)

    def write(self, loop: TrainingLoop, journal_head: str, *, folder: int | None = None) -> None:
        """Save the state of ``loop`` between two steps, atomically and flushed to the disk.

        For ``folder``, see ``write_atomically``.

        Raises:
            CheckpointError: Something in the state cannot be saved; it is named.
        """
        ledger = loop.run.ledger
        tensors, values = checkpoint_content(loop.run, with_digest=False)
        stored = {
            "format": FORMAT,
            "settings": dict(self.settings),
            "journal_head": journal_head,
            "rows": torch.frombuffer(self._encoder(ledger), dtype=torch.uint8),
            "notes": ledger.notes,
            "loop": loop.state_dict(),
        }
        values[KEY] = pack_nest(stored, KEY, tensors, "the training")
        values[_ORIGINS] = ledger.origins
        write_tensor_file(self.path, tensors, values, folder=folder)


class RowsEncoder:
    """Rows of a ledger that grows, as compressed JSON; each row is encoded once.

    A decaying schedule has one row for each step: without compression, most of the time of a late save would be theirs.
    """

    def __init__(self) -> None:
        self._compressor = zlib.compressobj(1)
        self._compressed = bytearray(self._compressor.compress(b"["))
        self._rows = 0

    def __call__(self, ledger: Ledger) -> bytearray:
        """All rows of ``ledger``, which must continue the ledger of the last call."""
        # the last row may still grow
        *done, last = [json.dumps(row) for row in ledger.row_dicts(self._rows)] or [""]
        self._rows += len(done)
        self._compressed += self._compressor.compress("".join(f"{row}," for row in done).encode())
        ending = self._compressor.copy()
        return self._compressed + ending.compress(f"{last}]".encode()) + ending.flush()


def _decoded_rows(rows: Any) -> Any:
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(np.asarray(rows, dtype=np.uint8).tobytes(), MAX_LEDGER_BYTES)
    except zlib.error as error:
        raise ValueError(f"the rows of the ledger are damaged: {error}") from error
    if not decompressor.eof:
        raise ValueError(f"the rows of the ledger are incomplete, or have more than {MAX_LEDGER_BYTES:,} bytes")
    return parse_json(text.decode("utf-8"))


def run_settings(run: Run) -> dict[str, Any]:
    """The settings of a training that its objects show, under the names used in messages."""
    plan, model = run.plan, run.model
    return {
        "network": type(model.network).__name__,
        "optimizer": type(model.optimizer).__name__,
        "epochs": run.epochs,
        "first step": run.first_step,
        "steps per epoch": run.steps_per_epoch,
        **plan.facts,
        "sampling": plan.sampler.name,
        "unit": plan.unit.describe(),
        "noise mechanism": type(plan.noise).__name__,
        "clip mechanism": type(plan.clip).__name__,
        "reproducible": sorted(name for name, stream in run.streams.items() if stream.reproducible),
        "delta": run.delta,
        _DIGEST: _planned_digest(run),
    }


def check_state(state: TrainingState, run: Run, listeners: CallbackList, settings: Mapping[str, Any]) -> None:
    """Refuse a state that ``run`` cannot be resumed from; nothing is changed.

    Raises:
        CheckpointError: Settings, network, optimizer or callbacks differ from those it was saved from (says which and
            how), or the model has already trained.
    """
    if settings != state.settings:
        differences = _worded(settings, state.settings, run_settings(run))
        raise CheckpointError(f"{state.path} belongs to a different training: {'; '.join(differences)}. {WHAT_TO_DO}")
    model = run.model
    state.checkpoint.check(model.network, model.optimizer)
    broken = [name for name, _ in model.network.named_parameters() if _has_nan(state.checkpoint.weights[name])]
    if broken:
        raise CheckpointError(f"{state.path}: {', '.join(broken[:MAX_DIFFERENCES])} holds values that are not numbers")
    require_charged(state, run)
    given, stated = [name for name, _ in listeners.state_dict()], [name for name, _ in state.loop["callbacks"]]
    if given != stated:
        raise CheckpointError(
            f"{state.path} holds the state of the callbacks {', '.join(stated) or 'none'}, but the training has "
            f"{', '.join(given) or 'none'}; give the same callbacks in the same order"
        )
    if model.ledger.total:
        raise CheckpointError(
            f"a training must be resumed on a newly built model, but the ledger of this one already holds "
            f"{model.ledger.total} releases; build network, optimizer and model again"
        )


def _has_nan(weights: Tensor) -> bool:
    return bool(weights.isnan().any())


def _worded(ours: Mapping[str, Any], theirs: Mapping[str, Any], derived: Collection[str]) -> list[str]:
    """The differences in what the user sets; if there are none, those in what follows from it."""

    def among(names: Collection[str]) -> list[str]:
        return setting_differences(*({name: side[name] for name in side if name in names} for side in (ours, theirs)))

    names = {*ours, *theirs}
    # A digest means nothing to a reader: it is named only if everything else is the same.
    choices = (names - set(derived), set(derived) - {_DIGEST}, names)
    return next(filter(None, map(among, choices)))


def setting_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """How two trainings differ, in words; at most ``MAX_DIFFERENCES``, in the order of ``ours``.

    Example:
        >>> setting_differences({"training.epochs": 10}, {"training.epochs": 12})
        ['training.epochs is 10 here and 12 in the state']
    """
    found = []
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        one, other = ours.get(name, _MISSING), theirs.get(name, _MISSING)
        if one != other:
            found.append(f"{name} is {_word(one)} here and {_word(other)} in the state")
    return found[:MAX_DIFFERENCES]


def charge_lost(
    run: Run,
    processes: Iterable[Sequence[tuple[PrivacyEvent, int]]],
    stated: Ledger,
    limits: Iterable[Callable[..., bool]] = (),
) -> int:
    """Charge what earlier processes released and lost; return the number of lost steps.

    Args:
        run: The resumed run, its ledger restored.
        processes: What each process had announced beyond the state. Each gets partition numbers that neither the ledger
            nor the rest of the run uses: under shuffled batches these are different epochs.
        stated: The ledger on the disk. It may know releases that are not steps of the run, such as those of a callback.
        limits: ``within_limits`` of the monitors. If an epoch of shuffled batches cannot be continued within them, the
            run is stopped before its first step: what the last process lost then stays a part of that epoch.
    """
    ledger, planned, lost = run.ledger, Ledger(), 0
    if run.planned_steps > run.first_step:
        planned.record(run.event(run.planned_steps - 1))

    def charge(rows: Iterable[tuple[PrivacyEvent, int]], *, last: bool = False) -> None:
        segment = Ledger([LOST_NOTE])
        for event, count in rows:
            segment.record(event, count, lost=True)
        shift = max(ledger.next_partition, planned.next_partition)
        repeated = Ledger().extend(segment, shift)
        if last and segment.next_partition and not all(within(run, repeated) for within in limits):
            run.stop(CANNOT_CONTINUE)
            shift = 0
        ledger.extend(segment, shift)

    lists = list(filter(None, processes))
    for number, rows in enumerate(lists, start=1):
        charge(rows, last=number == len(lists))
        lost += sum(count for _, count in rows)
    unknown = stated.beyond(ledger)
    if unknown.total:
        charge(unknown)
    return lost


def _planned_digest(run: Run) -> str:
    # Evenly spaced releases distinguish schedules without a walk through a long plan.
    digest, planned = hashlib.sha256(), run.planned_steps - run.first_step
    for step in range(run.first_step, run.planned_steps, max(1, planned // COMPARED_RELEASES)):
        digest.update(json.dumps(run.event(step).to_dict(), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _word(value: Any) -> str:
    return "not stated" if value is _MISSING else repr(value)
