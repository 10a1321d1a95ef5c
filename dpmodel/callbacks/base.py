"""Hooks into a training, under MindSpore's names, and the list that calls them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dpmodel.claims.choices import Choices
from monitors import checks

if TYPE_CHECKING:
    from dpmodel.training.run import Run


class Callback:
    """Base of callbacks: eight empty hooks, each called with the run. Override the ones you need.

    The order within a training is ``on_train_begin``, then for each epoch ``on_train_epoch_begin``, for each step
    ``on_train_step_begin`` and ``on_train_step_end``, then (with validation data) ``on_eval_begin`` and
    ``on_eval_end``, ``on_train_epoch_end``; finally ``on_train_end``. ``run.stop(reason)`` ends the training before
    the next step. Weights, buffers and optimizer state are compared before each step and after ``on_train_end``:
    a callback that changes them must do so inside ``run.post_processing(what)``.

    In a training of several processes, each rank calls its own callbacks, unless ``first_rank_only`` is set: for a
    callback that writes files or releases something of the data. A release on a different rank is refused; if every
    rank needs the released value, call ``run.ranks.once(function)`` on every rank.

    Example:
        >>> class Hello(Callback):
        ...     def on_train_begin(self, run):
        ...         print("training starts")
        >>> CallbackList([Hello()]).notify("on_train_begin", run=None)
        training starts
    """

    #: Whether only rank 0 calls the callback.
    first_rank_only: ClassVar[bool] = False

    def on_train_begin(self, run: Run) -> None:
        """Called once before the first step."""

    def on_train_end(self, run: Run) -> None:
        """Called once after the last step, even if the training was stopped or failed."""

    def on_train_epoch_begin(self, run: Run) -> None:
        """Called before the first step of each epoch."""

    def on_train_epoch_end(self, run: Run) -> None:
        """Called after each epoch, when its validation is done and its row is in ``run.history``."""

    def on_train_step_begin(self, run: Run) -> None:
        """Called before each step; nothing of that step has been released yet."""

    def on_train_step_end(self, run: Run) -> None:
        """Called after each step; its events are on ``run.ledger``."""

    def on_eval_begin(self, run: Run) -> None:
        """Called before each validation."""

    def on_eval_end(self, run: Run) -> None:
        """Called after each validation; ``run.metrics`` is fresh."""

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed training restores: plain values and tensors; nothing by default.

        ``load_state_dict`` restores it after ``on_train_begin``.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``."""
        del state


HOOKS: tuple[str, ...] = tuple(name for name in vars(Callback) if name.startswith("on_"))


#: Similarity to the name of a hook from which a method counts as a misspelt hook.
_ALMOST = 0.85

#: MindSpore's older names of hooks.
MINDSPORE_HOOKS: Mapping[str, str] = {
    "begin": "on_train_begin",
    "end": "on_train_end",
    "epoch_begin": "on_train_epoch_begin",
    "epoch_end": "on_train_epoch_end",
    "step_begin": "on_train_step_begin",
    "step_end": "on_train_step_end",
    "on_epoch_begin": "on_train_epoch_begin",
    "on_epoch_end": "on_train_epoch_end",
    "on_step_begin": "on_train_step_begin",
    "on_step_end": "on_train_step_end",
}


class CallbackList:
    """Callbacks in the order given, with a table of the listeners of each hook.

    Before a step, callbacks with ``asked_last`` (monitors and guards that enforce a limit) come after all others,
    whatever their position, so that they see the noise that other callbacks have set for the step.

    Objects of any class are accepted if they have at least one of the hooks, as privacy monitors do. Hooks that a
    callback leaves empty cost nothing.

    Args:
        callbacks: Callbacks, or a single one.
        last: Callbacks that come after all of these.
        first_rank: Whether this process is rank 0. On other ranks, callbacks with ``first_rank_only`` are not called.

    Raises:
        ValueError: An entry is None, a class instead of an object, has no hook, or is given twice; or a method of a
            ``Callback`` has almost the name of a hook.
    """

    def __init__(
        self, callbacks: Iterable[Any] | Any = (), last: Iterable[Any] = (), *, first_rank: bool = True
    ) -> None:
        entries = callbacks if isinstance(callbacks, Iterable) else (callbacks,)
        self._callbacks: tuple[Any, ...] = tuple(_checked(entry) for entry in (*entries, *last))
        _refuse_twice(self._callbacks)
        self._first_rank = first_rank
        self._begun: list[Any] = list(self._callbacks)
        self._choices = Choices()
        self._listeners: dict[str, tuple[Callable[[Any], None], ...]] = {
            hook: tuple(getattr(entry, hook) for entry in self._in_order(hook) if self._listens(entry, hook))
            for hook in HOOKS
        }

    def notify(self, hook: str, run: Any) -> None:
        """Call ``hook`` of every callback that has it, in order.

        ``on_train_end`` reaches every callback whose training has begun, even if one of them fails, so that files are
        closed and the screen is restored; the first failure is then raised. A callback that fails in
        ``on_train_begin`` has not begun, nor have those after it.

        Raises:
            ValueError: There is no such hook.
        """
        listeners = self._listeners.get(hook)
        if listeners is None:
            raise ValueError(
                f"unknown hook {hook!r}{checks.nearest_hint(hook, HOOKS) or ';'} known: {', '.join(HOOKS)}"
            )
        if hook == "on_train_begin":
            self._begin(run)
        elif hook == "on_train_end":
            _call_all([entry.on_train_end for entry in self._begun if self._listens(entry, hook)], run, self._choices)
        else:
            for listener in listeners:
                self._choices.call(listener, run)

    def _begin(self, run: Any) -> None:
        self._begun, self._choices = [], Choices()
        for entry in self._callbacks:
            if self._listens(entry, "on_train_begin"):
                self._choices.call(entry.on_train_begin, run)
            self._begun.append(entry)

    def _listens(self, entry: Any, hook: str) -> bool:
        return (self._first_rank or not getattr(entry, "first_rank_only", False)) and _listens(entry, hook)

    def _in_order(self, hook: str) -> Iterable[Any]:
        if hook != "on_train_step_begin":
            return self._callbacks
        return sorted(self._callbacks, key=lambda entry: bool(getattr(entry, "asked_last", False)))

    def state_dict(self) -> list[tuple[str, dict[str, Any]]]:
        """Class name and state of each callback that has a state to keep, in order."""
        return [(type(entry).__name__, state) for entry, state in self._stateful()]

    def load_state_dict(self, state: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Restore ``state_dict`` in the same callbacks."""
        for (entry, _), (_, values) in zip(list(self._stateful()), state, strict=True):
            entry.load_state_dict(values)

    def _stateful(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        states = ((entry, entry.state_dict()) for entry in self._callbacks if hasattr(entry, "state_dict"))
        return ((entry, state) for entry, state in states if state)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._callbacks)

    def __len__(self) -> int:
        return len(self._callbacks)


def _call_all(listeners: Iterable[Callable[[Any], None]], run: Any, choices: Choices) -> None:
    failures = []
    for listener in listeners:
        try:
            choices.call(listener, run)
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _checked(entry: Any) -> Any:
    if entry is None:
        raise ValueError("callbacks holds None; leave the entry out, or give a callback object")
    if isinstance(entry, type):
        raise ValueError(
            f"callbacks holds the class {entry.__name__} instead of an object; write {entry.__name__}(...)"
        )
    if not any(_listens(entry, hook) for hook in HOOKS) and not isinstance(entry, Callback):
        raise ValueError(
            f"callbacks holds {entry!r} of type {type(entry).__name__}, which has none of the hooks "
            f"{', '.join(HOOKS)}. Derive it from dpmodel.Callback and override at least one."
        )
    if isinstance(entry, Callback):
        _refuse_misnamed(entry)
    return entry


def _refuse_misnamed(entry: Callback) -> None:
    """A method that looks like a hook but is not one would never be called."""
    for name in dir(type(entry)):
        meant = MINDSPORE_HOOKS.get(name) or next(iter(difflib.get_close_matches(name, HOOKS, 1, _ALMOST)), name)
        if name not in HOOKS and meant != name and callable(getattr(type(entry), name)):
            raise ValueError(
                f"{type(entry).__name__}.{name} is not a hook and would never be called; did you mean {meant!r}? The "
                f"hooks are {', '.join(HOOKS)}"
            )


def _refuse_twice(entries: tuple[Any, ...]) -> None:
    seen: set[int] = set()
    for entry in entries:
        if id(entry) in seen:
            raise ValueError(f"callbacks holds the same {type(entry).__name__} twice; it would see every step twice")
        seen.add(id(entry))


def _listens(entry: Any, hook: str) -> bool:
    if not callable(getattr(entry, hook, None)):
        return False
    inherited = getattr(type(entry), hook, None) is getattr(Callback, hook) and hook not in getattr(
        entry, "__dict__", {}
    )
    return not inherited
