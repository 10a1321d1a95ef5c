"""The form of a training state that was read back: everything is checked before anything is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dpmodel.training.history import History
from monitors import checks
from monitors.errors import CheckpointError
from monitors.events import DisjointEvent

if TYPE_CHECKING:
    from dpmodel.saving.state import TrainingState
    from dpmodel.training.run import Run

#: Parts of ``TrainingLoop.state_dict()`` and of ``Run.state_dict()``, with their types.
_LOOP: Mapping[str, type] = {"run": dict, "step": dict, "progress": dict, "callbacks": list, "generators": dict}
_RUN: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("first_step", "first_partition", "planned_steps", "step", "epoch"), int),
    "loss": (float, int, type(None)),
    **dict.fromkeys(("metrics", "history", "clip", "sampler", "streams"), dict),
    "statements": list,
}


@contextmanager
def restoring(path: str) -> Iterator[None]:
    """Turn any failure in the block into a ``CheckpointError``: it restores something from the file ``path``."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = checks.shortened(" ".join(str(error).split()))
        raise CheckpointError(
            f"{path} holds a state that does not fit this training: {type(error).__name__}: {reason}"
        ) from error


def require_form(state: TrainingState) -> None:
    """Refuse a state with missing parts, parts of a wrong type, or counters that contradict each other.

    Raises:
        CheckpointError: Names the part.
    """
    with restoring(state.path):
        _require_types({"settings": state.settings, "journal_head": state.journal_head, "loop": state.loop}, _STATE)
        _require_types(state.loop, _LOOP)
        run = state.run
        _require_types(run, _RUN)
        counters = {name: run[name] for name in run if _RUN[name] is int}
        checks.non_negative_int(**counters)
        checks.numbers(**run["metrics"])
        if not run["first_step"] <= run["step"] <= run["planned_steps"] or run["step"] != state.step:
            raise ValueError(f"the steps contradict each other: {counters} and step {state.step} of the checkpoint")
        for entry in state.loop["callbacks"]:
            name, values = entry
            _require_types({"name": name, "state": values}, {"name": str, "state": dict})
        for statement in run["statements"]:
            _require_types({"statement": statement}, {"statement": dict})
        steps = [row.step for row in History.from_dict(run["history"])]
        if steps and steps[-1] > run["step"]:
            raise ValueError(f"the history ends at step {steps[-1]}, after step {run['step']} of the training")


def require_charged(state: TrainingState, run: Run) -> None:
    """Refuse a state whose ledger does not charge the steps that it says are done, as ``run`` would charge them.

    Under shuffled batches, the steps of one epoch are one partition of the data and cost as much as one of them. A
    partition number that moves would let two epochs be charged as one.

    Raises:
        CheckpointError: Says what is missing.
    """
    stated, done = state.run, state.step - run.first_step
    if stated["planned_steps"] != run.planned_steps or not 1 <= stated["epoch"] <= run.epochs:
        raise CheckpointError(
            f"{state.path} states {stated['planned_steps']} planned steps and epoch {stated['epoch']}, but the "
            f"training has {run.planned_steps} and {run.epochs}"
        )
    kept = state.ledger.kept
    if kept.total < done:
        raise CheckpointError(f"{state.path} states {done} steps, but its ledger charges only {kept.total} releases")
    charged: dict[int, int] = {}
    for event, count in kept:
        if isinstance(event, DisjointEvent):
            charged[event.partition] = charged.get(event.partition, 0) + count
    used = {event.partition for event, _ in state.ledger if isinstance(event, DisjointEvent)}
    sampler, planned = run.plan.sampler, run.planned_steps - run.first_step
    for number in range(sampler.partitions(planned)):
        begin = number * sampler.period
        event = run.event(run.first_step + begin)
        if not isinstance(event, DisjointEvent):
            return
        steps = min(max(done - begin, 0), sampler.period)
        if charged.get(event.partition, 0) < steps or (not steps and event.partition in used):
            raise CheckpointError(
                f"{state.path} states {done} steps, but its ledger does not charge those from step {begin} on as "
                f"partition {event.partition} of the data"
            )


_STATE: Mapping[str, type] = {"settings": dict, "journal_head": str, "loop": dict}


def _require_types(values: Any, types: Mapping[str, Any]) -> None:
    if not isinstance(values, dict) or values.keys() != types.keys():
        found = ", ".join(map(str, values)) if isinstance(values, dict) else checks.shown(values)
        raise ValueError(f"it must have the entries {', '.join(types)}, got {checks.shortened(found)}")
    for name, kind in types.items():
        value = values[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{name} has the type {type(value).__name__}")
