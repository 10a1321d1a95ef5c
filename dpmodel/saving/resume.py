"""Going on from a training state: what must be the same, and how everything is put back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from dpmodel.saving.state import TrainingState, stateful, streams
from dpmodel.training.history import History
from monitors.errors import CheckpointError
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from dpmodel.callbacks.base import CallbackList
    from dpmodel.training.loop import TrainingLoop
    from dpmodel.training.run import Run

#: Stands beside every epsilon that has lost steps in it.
LOST_NOTE = (
    "steps were released and lost with a process that broke off: they are charged in this figure, although nothing of "
    "them is in the model"
)

#: Ends the refusal of a state that is of another training.
WHAT_TO_DO = "Resume with the settings of the run, or begin anew in another folder (--output)"

MAX_DIFFERENCES = 5
COMPARED_RELEASES = 64
_DIGEST = "planned releases (digest of some)"
_MISSING = object()


def run_settings(run: Run) -> dict[str, Any]:
    """What a training is, as far as its objects tell, by names for messages."""
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
        "reproducible": sorted(name for name, stream in streams(plan).items() if stream.reproducible),
        "delta": run.delta,
        _DIGEST: _planned_digest(run),
    }


def check_state(state: TrainingState, run: Run, listeners: CallbackList, settings: Mapping[str, Any]) -> None:
    """Refuse a state that ``run`` cannot go on from; nothing is changed.

    Raises:
        CheckpointError: Settings, network, optimizer or callbacks are others than those it was saved from (says which
            and how), or the model has trained already.
    """
    if settings != state.settings:
        differences = _told(settings, state.settings, run_settings(run))
        raise CheckpointError(f"{state.path} is of another training: {'; '.join(differences)}. {WHAT_TO_DO}")
    model = run.model
    state.checkpoint.check(model.network, model.optimizer)
    given, stated = [name for name, _ in stateful(tuple(listeners))], [name for name, _ in state.callbacks]
    if given != stated:
        raise CheckpointError(
            f"{state.path} holds the state of the callbacks {', '.join(stated) or 'none'}, but the training is given "
            f"{', '.join(given) or 'none'}; give the same ones in the same order"
        )
    if model.ledger.total:
        raise CheckpointError(
            f"a training is resumed on a model that was built anew, but this one's ledger holds {model.ledger.total} "
            "releases already; build network, optimizer and model again"
        )


def _told(ours: Mapping[str, Any], theirs: Mapping[str, Any], derived: Collection[str]) -> list[str]:
    """The differences in what the user sets; in what follows from it where nothing of that differs."""

    def among(names: Collection[str]) -> list[str]:
        return setting_differences(*({name: side[name] for name in side if name in names} for side in (ours, theirs)))

    names = {*ours, *theirs}
    # A digest tells nobody anything: it speaks only where all else is the same.
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


def restore_model(state: TrainingState, run: Run) -> None:
    """Put back what must be there before a training begins: weights, ledger, mechanisms, history and counters."""
    model, plan = run.model, run.plan
    state.checkpoint.restore(model.network)
    model.ledger.extend(state.ledger)
    model.statements = [dict(statement) for statement in state.statements]
    plan.clip.load_state_dict(state.clip)
    plan.sampler.load_state_dict(state.sampler)
    for name, stream in streams(plan).items():
        if name in state.streams:
            stream.seek(state.streams[name])
    run.step = model.steps_done = state.step
    run.epoch = state.epoch
    run.loss = state.loss
    run.metrics = dict(state.metrics)
    run.history = History.from_dict(state.history)


def charge_lost(run: Run, segments: Sequence[Ledger]) -> int:
    """Charge what earlier processes released and lost; how many steps that is.

    Args:
        run: The resumed run, its ledger restored.
        segments: A ledger for each process. It gets partition numbers that neither the ledger has nor the rest of the
            run will use.
    """
    ledger, planned = run.ledger, Ledger()
    if run.planned_steps > run.first_step:
        planned.record(run.event(run.planned_steps - 1))
    for segment in segments:
        ledger.extend(segment, max(ledger.next_partition, planned.next_partition))
        ledger.add_note(LOST_NOTE)
    return sum(segment.total for segment in segments)


def restore_loop(state: TrainingState, loop: TrainingLoop) -> None:
    """Put back what callbacks set anew when a training begins: optimizer, schedules, their own states."""
    for (_, entry), (_, values) in zip(stateful(tuple(loop.listeners)), state.callbacks, strict=True):
        entry.load_state_dict(values)
    # After the schedules: they set the first learning rate when they are built.
    state.checkpoint.restore(loop.run.network, loop.run.optimizer)
    loop.step.guard.protected(state.step)
    loop.step.broken_steps = state.broken_steps
    loop.progress.losses[:] = state.losses
    loop.progress.seconds = state.seconds


def restore_randomness(state: TrainingState, device: torch.device) -> None:
    """Put back torch's generators, so that dropout goes on where it was."""
    if "cpu" in state.randomness:
        torch.set_rng_state(state.randomness["cpu"])
    if device.type == "cuda" and "cuda" in state.randomness:
        torch.cuda.set_rng_state(state.randomness["cuda"], device)


def _planned_digest(run: Run) -> str:
    # Evenly spaced ones tell one schedule from another, and a long plan is not walked through.
    digest, planned = hashlib.sha256(), run.planned_steps - run.first_step
    for step in range(run.first_step, run.planned_steps, max(1, planned // COMPARED_RELEASES)):
        digest.update(json.dumps(run.event(step).to_dict(), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _word(value: Any) -> str:
    return "not stated" if value is _MISSING else repr(value)
