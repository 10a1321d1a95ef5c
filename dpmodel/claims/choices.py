"""Choices of callbacks that have read private values, which no event on the ledger accounts for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from dpmodel.training.run import Run

#: Packages whose callbacks show private values but make no choices with them.
_OWN = ("dpmodel", "monitors")

_WATCHED: ContextVar[tuple[Choices, Run] | None] = ContextVar("watched", default=None)


def private_value_read(name: str) -> None:
    """Report that a callback reads a value without privacy protection, such as the training loss.

    Args:
        name: The value, in words.
    """
    watched = _WATCHED.get()
    if watched is not None:
        choices, run = watched
        choices.seen(name, run)


class Choices:
    """Watches the callbacks of one training.

    Guarantees: once a callback has read a private value through the run or its history, any callback that changes the
    options of the optimizer, the noise, the clipping, or attributes of the network or the loss, leaves a
    note on the ledger. Callbacks of ``dpmodel`` and ``monitors`` are exempt: they only show values. Values that a
    callback computes from the data directly are not seen.
    """

    def __init__(self) -> None:
        self._seen: str | None = None
        self._before: dict[str, Any] = {}

    def call(self, listener: Callable[[Any], None], run: Any) -> None:
        """Call a hook of a callback with ``run``."""
        if _is_own(listener):
            listener(run)
            return
        self._before = settings_of(run) if self._seen is not None else {}
        token = _WATCHED.set((self, run))
        try:
            listener(run)
        finally:
            _WATCHED.reset(token)
            self._note_changes(listener, run)

    def seen(self, name: str, run: Run) -> None:
        """The running callback has read a private value."""
        self._seen = self._seen or name
        self._before = self._before or settings_of(run)

    def _note_changes(self, listener: Callable[[Any], None], run: Run) -> None:
        if self._seen is None:
            return
        after = settings_of(run)
        for name in (name for name in after if after[name] != self._before.get(name)):
            run.ledger.add_note(
                f"{_name(listener)} changed {name} after a callback had read {self._seen}: this choice is not "
                "accounted for"
            )


#: Depth to which containers are compared, and the largest number of items in one.
_DEPTH, _MOST_ITEMS = 3, 1_000


def settings_of(run: Run) -> dict[str, Any]:
    """The settings that steer a training, by their names in words."""
    plan = run.plan
    groups = run.optimizer.param_groups
    options = dict.fromkeys(name for group in groups for name in group if name != "params")
    found = {_option(name): [_plain(group.get(name)) for group in groups] for name in options}
    last = max(run.planned_steps - 1, run.first_step)
    step = min(run.step, last)
    parts = [part for part in (*run.network.modules(), run.model.loss_fn) if hasattr(part, "__dict__")]
    return found | {
        "the state of the network or the loss": [_contents(vars(part)) for part in parts],
        "the state of the data": [_contents(vars(source)) for source in run.sources if hasattr(source, "__dict__")],
        "the noise": [plan.noise.noise_multiplier(step), plan.noise.noise_multiplier(last), plan.clip_event(step)],
        "the norm bound": plan.clip.norm_bound,
    }


def _contents(value: Any, depth: int = _DEPTH) -> Any:
    """Numbers and strings by value, containers by their items, and everything else by identity."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, SimpleNamespace):
        value = vars(value)
    if depth and isinstance(value, Mapping) and len(value) <= _MOST_ITEMS:
        return [(key, _contents(part, depth - 1)) for key, part in value.items()]
    if depth and isinstance(value, (list, tuple)) and len(value) <= _MOST_ITEMS:
        return [_contents(part, depth - 1) for part in value]
    return id(value)


def _option(name: str) -> str:
    return "the learning rate" if name == "lr" else f"the option {name!r} of the optimizer"


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _is_own(listener: Callable[[Any], None]) -> bool:
    owner = type(getattr(listener, "__self__", listener))
    return owner.__module__.partition(".")[0] in _OWN


def _name(listener: Callable[[Any], None]) -> str:
    return type(getattr(listener, "__self__", listener)).__name__
