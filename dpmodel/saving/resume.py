"""Resuming from a training state: what must be the same, and what is charged for lost steps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from monitors.errors import CheckpointError
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from dpmodel.callbacks.base import CallbackList
    from dpmodel.saving.state import TrainingState
    from dpmodel.training.run import Run
    from monitors.events import PrivacyEvent

#: Accompanies every epsilon that includes lost steps.
LOST_NOTE = (
    "steps were released and lost when a process was killed: this figure includes them, although the model contains "
    "nothing of them"
)

#: Ends the refusal of a state that belongs to another training.
WHAT_TO_DO = "Resume with the settings of the run, or start again in another folder (--output)"

MAX_DIFFERENCES = 5
COMPARED_RELEASES = 64
_DIGEST = "planned releases (digest of some)"
_MISSING = object()


def run_settings(run: Run) -> dict[str, Any]:
    """What a training is, as far as its objects show it, by names for messages."""
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
        raise CheckpointError(f"{state.path} belongs to another training: {'; '.join(differences)}. {WHAT_TO_DO}")
    model = run.model
    state.checkpoint.check(model.network, model.optimizer)
    given, stated = [name for name, _ in listeners.state_dict()], [name for name, _ in state.loop["callbacks"]]
    if given != stated:
        raise CheckpointError(
            f"{state.path} holds the state of the callbacks {', '.join(stated) or 'none'}, but the training has "
            f"{', '.join(given) or 'none'}; give the same callbacks in the same order"
        )
    if model.ledger.total:
        raise CheckpointError(
            f"a training is resumed on a newly built model, but the ledger of this one already holds "
            f"{model.ledger.total} releases; build network, optimizer and model again"
        )


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


def charge_lost(run: Run, processes: Iterable[Sequence[PrivacyEvent]]) -> int:
    """Charge what earlier processes released and lost; returns how many steps that is.

    Args:
        run: The resumed run, its ledger restored.
        processes: What each process had announced beyond the state. Each gets partition numbers that neither the ledger
            nor the rest of the run uses: under shuffled batches these are different epochs.
    """
    ledger, planned, lost = run.ledger, Ledger(), 0
    if run.planned_steps > run.first_step:
        planned.record(run.event(run.planned_steps - 1))
    for events in filter(None, processes):
        segment = Ledger([LOST_NOTE])
        for event in events:
            segment.record(event, lost=True)
        ledger.extend(segment, max(ledger.next_partition, planned.next_partition))
        lost += len(events)
    return lost


def _planned_digest(run: Run) -> str:
    # Evenly spaced releases distinguish schedules without a walk through a long plan.
    digest, planned = hashlib.sha256(), run.planned_steps - run.first_step
    for step in range(run.first_step, run.planned_steps, max(1, planned // COMPARED_RELEASES)):
        digest.update(json.dumps(run.event(step).to_dict(), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _word(value: Any) -> str:
    return "not stated" if value is _MISSING else repr(value)
