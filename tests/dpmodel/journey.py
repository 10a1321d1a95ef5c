"""Counts the calls that pass a configuration on, from ``train_from_config`` to the first step.

    python tests/dpmodel/journey.py

A call counts if a function of ``monitors``, ``mechanisms`` or ``dpmodel`` receives the configuration: one of its
arguments is the ``Config``, a section of it, or an object that carries it on (``Task``, ``Training``, ``TrainingPlan``,
``ReleasePlan``). Building such an object counts as a call too. Repeated calls count each time.

Two kinds of calls do not count: methods and properties of these objects, which read them in place, and
``locating_errors``, which only adds file and line to an error. The modules are those of the counted functions.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from dpmodel.config import locating_errors, make_config
from dpmodel.config.fields import Section
from dpmodel.planning.release import ReleasePlan
from dpmodel.planning.training_plan import TrainingPlan
from dpmodel.runs.build import Task, Training
from dpmodel.runs.train import train_from_config
from dpmodel.training.loop import TrainingLoop

PACKAGES = ("monitors", "mechanisms", "dpmodel")
CARRIERS = (Section, ReleasePlan, TrainingPlan, Task, Training)

#: A training with a target epsilon, a learning-rate schedule and a saved state.
SETTINGS = {
    "data": {"name": "synthetic", "shape": [1, 4, 4], "num_train": 60, "num_test": 20, "num_classes": 2},
    "network": "linear",
    "optimizer": {"name": "Momentum", "lr": 0.5, "schedule": {"name": "LinearLR", "end_factor": 0.0}},
    "privacy": {"target_epsilon": 8.0},
    "training": {"epochs": 3, "batch_size": 6},
    "output": {"curve": False, "save_every_steps": 4},
}


class _ArrivedError(Exception):
    """The training loop has begun."""


class Journey:
    """Counts calls as the profile function of ``sys.setprofile``; ends the training before its first step.

    Attributes:
        calls: Number of counted calls by (module, name).
    """

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self._seen: list[FrameType] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event != "call" or module.partition(".")[0] not in PACKAGES:
            return
        if frame.f_code is TrainingLoop.__call__.__code__:
            raise _ArrivedError
        if frame.f_code is inspect.unwrap(locating_errors).__code__ or not self._receives_it(frame):
            return
        if frame.f_code.co_flags & inspect.CO_GENERATOR:
            if frame in self._seen:
                return  # a resumed generator is not called again
            self._seen.append(frame)
        self.calls[module, frame.f_code.co_name] += 1

    @staticmethod
    def _receives_it(frame: FrameType) -> bool:
        arguments = list(_arguments(frame))
        if frame.f_code.co_name == "__init__":
            return any(isinstance(value, CARRIERS) for _, value in arguments)
        return any(isinstance(value, CARRIERS) for name, value in arguments if name != "self")


def _arguments(frame: FrameType) -> Iterator[tuple[str, Any]]:
    found = inspect.getargvalues(frame)
    yield from ((name, found.locals.get(name)) for name in found.args)
    if found.varargs:
        yield from ((found.varargs, value) for value in found.locals.get(found.varargs, ()))
    if found.keywords:
        yield from found.locals.get(found.keywords, {}).items()


def travel() -> Journey:
    """The journey of a configuration with ``SETTINGS``."""
    journey, config = Journey(), make_config(SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(journey)
        try:
            train_from_config(config, Path(folder) / "run")
        except _ArrivedError:
            pass
        finally:
            sys.setprofile(None)
    return journey


if __name__ == "__main__":
    journey = travel()
    for (module, name), count in sorted(journey.calls.items()):
        print(f"{count:4d}  {module}.{name}")
    print(f"{journey.calls.total()} calls in {len({module for module, _ in journey.calls})} modules")
