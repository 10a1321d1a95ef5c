"""Changes the learning rate during training."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dpmodel.callbacks.base import Callback
from dpmodel.preflight.optimizer import on_stand_in, rates_of, require_whole_schedule
from monitors import checks
from monitors.signatures import signature

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from dpmodel.training.run import Run


#: Note on the ledger if a schedule does not do what it did when it was tried.
LEFT_PLAN = (
    "the learning rate left the schedule that was computed before training: if it follows the training data, this "
    "choice is not accounted for"
)


class LearningRateScheduler(Callback):
    """Step a scheduler of ``torch.optim.lr_scheduler`` after every step or epoch.

    A learning rate that depends on the step alone changes nothing about privacy. The rates are computed before
    training; if the schedule leaves them later, a note on the ledger says so.

    Args:
        scheduler: A scheduler object for the optimizer of the model, or the name of its class. By name it is built when
            training begins, spans the whole training, and each ``fit`` starts again from the same rate.
        interval: ``"step"`` or ``"epoch"``.
        **args: Arguments of the class; only together with a name.

    Raises:
        ValueError: Unknown interval, name or argument, arguments given with an object, a scheduler that depends on a
            measured value, or (when training begins) a scheduler of a different optimizer or one that ends too early.

    Example:
        >>> LearningRateScheduler("LinearLR", start_factor=1.0, end_factor=0.0).interval
        'step'
    """

    def __init__(self, scheduler: LRScheduler | str, interval: str = "step", **args: Any) -> None:
        checks.one_of(("step", "epoch"), interval=interval)
        if not isinstance(scheduler, str) and args:
            raise ValueError(f"arguments {sorted(args)} belong with the name of a scheduler, not with an object")
        if isinstance(scheduler, str):
            _try_out(scheduler, args)
        elif not (hasattr(scheduler, "step") and hasattr(scheduler, "optimizer")):
            raise ValueError(f"scheduler must be a learning-rate scheduler of torch or its name, got {scheduler!r}")
        else:
            _require_step_alone(scheduler)
        self.interval = interval
        self.scheduler: LRScheduler | None = None if isinstance(scheduler, str) else scheduler
        self._name = scheduler if isinstance(scheduler, str) else None
        self._args = args
        self._initial: list[float] | None = None
        self._left = 0
        self._planned: deque[list[float]] = deque()

    def look_ahead(self, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler | None:
        """A copy of the schedule on a stand-in optimizer, to be stepped freely; None if it cannot be copied.

        Args:
            optimizer: The optimizer of the training, left as it was.
            epochs: Planned epochs.
            steps_per_epoch: Steps of each.
        """
        if self._name is None:
            return on_stand_in(self.scheduler) if self.scheduler is not None else None
        from dpmodel.optimizers import copied

        stand_in = copied(optimizer, lambda value: value.reshape(-1)[:1])
        self._set_rates(stand_in, self._initial or rates_of(stand_in))
        return _build(self._name, stand_in, epochs, steps_per_epoch, self.interval, self._args)

    def on_train_begin(self, run: Run) -> None:
        """Build a scheduler given by name; check one that was given as an object."""
        if self._name is not None:
            self._start_from_initial_rate(run.optimizer)
            planned = run.epochs, run.steps_per_epoch
            self.scheduler = _build(self._name, run.optimizer, *planned, self.interval, self._args)
        elif self.scheduler is not None and self.scheduler.optimizer is not run.optimizer:
            raise ValueError(
                "the learning-rate scheduler belongs to a different optimizer; build it for the optimizer of the model"
            )
        if self.scheduler is not None:
            steps = run.epochs * (run.steps_per_epoch if self.interval == "step" else 1)
            self._planned = deque(require_whole_schedule(self.scheduler, steps, self.interval))
        steps_left = run.planned_steps - run.step
        self._left = steps_left if self.interval == "step" else steps_left // run.steps_per_epoch

    def on_train_step_end(self, run: Run) -> None:
        """Step, if the interval is the step."""
        if self.interval == "step":
            self._step(run)

    def on_train_epoch_end(self, run: Run) -> None:
        """Step, if the interval is the epoch."""
        if self.interval == "epoch":
            self._step(run)

    def state_dict(self) -> dict[str, Any]:
        """The first rates and the position in the schedule."""
        schedule = None if self.scheduler is None else self.scheduler.state_dict()
        return {"initial": self._initial, "schedule": schedule}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``; the rate itself is the optimizer's."""
        initial, schedule = state["initial"], state["schedule"]
        if initial is not None:
            checks.non_negative(**{f"rate {i}": rate for i, rate in enumerate(initial)})
        if self.scheduler is not None:
            # The scheduler would take over any attribute, whatever its name and type.
            _require_alike(self.scheduler.state_dict(), schedule, type(self.scheduler).__name__)
            self.scheduler.load_state_dict(schedule)
            self._planned = deque(require_whole_schedule(self.scheduler, self._left, self.interval))
        self._initial = initial

    def _step(self, run: Run) -> None:
        if self.scheduler is None:
            return
        # A rate that a callback has set itself is not taken for the schedule's.
        on_plan = bool(self._planned) and rates_of(run.optimizer) == self._planned.popleft()
        self.scheduler.step()
        if on_plan and self._planned and rates_of(run.optimizer) != self._planned[0]:
            run.ledger.add_note(LEFT_PLAN)

    def _start_from_initial_rate(self, optimizer: Any) -> None:
        if self._initial is None:
            self._initial = rates_of(optimizer)
        self._set_rates(optimizer, self._initial)

    @staticmethod
    def _set_rates(optimizer: Any, rates: list[float]) -> None:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
            group.pop("initial_lr", None)


def _require_alike(own: Any, value: Any, what: str) -> None:
    """Refuse a state with different entries than the live one, or of different types; finite numbers may differ."""
    if isinstance(own, dict) and isinstance(value, dict) and own.keys() == value.keys():
        for key in own:
            _require_alike(own[key], value[key], f"{what}.{key}")
    elif isinstance(own, (list, tuple)) and type(own) is type(value) and len(own) == len(value):
        for index, pair in enumerate(zip(own, value, strict=True)):
            _require_alike(*pair, f"{what}.{index}")
    elif isinstance(own, (int, float)) and not isinstance(own, bool):
        checks.finite(**{what: value})
    elif hasattr(own, "shape"):
        if getattr(value, "shape", None) != own.shape:
            raise ValueError(f"{what} must be a tensor of shape {tuple(own.shape)}, got {checks.shown(value)}")
    elif type(own) is not type(value) or own != value:
        raise ValueError(f"{what} is {checks.shown(own)} here, got {checks.shown(value)}")


def _require_step_alone(scheduler: Any) -> None:
    try:
        signature(scheduler.step).bind()
    except TypeError as error:
        raise ValueError(
            f"{type(scheduler).__name__}.step() cannot be called without arguments ({error}): it depends on a "
            "measured value, and a rate that follows the training data would be a release missing from the ledger. "
            "Give a scheduler that depends on the step, such as CosineAnnealingLR; EarlyStopping watches held-out data"
        ) from error


def _build(
    name: str, optimizer: Any, epochs: int, steps_per_epoch: int, interval: str, args: dict[str, Any]
) -> LRScheduler:
    from dpmodel.optimizers import build_scheduler

    per_epoch = steps_per_epoch if interval == "step" else 1
    return build_scheduler(name, optimizer, epochs * per_epoch, per_epoch, **args)


def _try_out(name: str, args: dict[str, Any]) -> None:
    # A wrong name or argument must fail here, not after the data are loaded and training begins.
    import torch

    from dpmodel.optimizers import build_optimizer, build_scheduler

    trial = build_optimizer("Momentum", [torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    build_scheduler(name, trial, 100, 10, **args)
