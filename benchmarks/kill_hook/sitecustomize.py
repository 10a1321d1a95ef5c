"""Python imports this module at the start of each process whose path names its folder, workers and ranks included.

The process then writes a trace: each event once its noise is drawn and before the weights change, with the run folder.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, ClassVar

_run = ""


def trace_steps(module: ModuleType) -> None:
    """Let the update of ``dpmodel.training.update`` write the trace."""
    update = module.Update.__call__

    @functools.wraps(update)
    def traced(self: Any, summed: Any, step: int) -> None:
        rank = os.environ.get("RANK", "0")
        path = f"{os.environ['KILLS_TRACE']}/{os.environ['KILLS_START']}-{rank}-{os.getpid()}.jsonl"
        line = json.dumps({"run": _run, "event": self.plan.event(step).to_dict()}) + "\n"
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(handle, line.encode())
        os.close(handle)
        update(self, summed, step)

    module.Update.__call__ = traced


def name_runs(module: ModuleType) -> None:
    """Let ``train_from_config`` of ``dpmodel.runs.train`` state its run folder."""
    train = module.train_from_config

    @functools.wraps(train)
    def named(config: Any, directory: Any = None, **options: Any) -> Any:
        global _run
        _run = str(directory)
        return train(config, directory, **options)

    module.train_from_config = named  # type: ignore[attr-defined]


class _Finder:
    """Changes two modules of dpmodel when they are imported."""

    changes: ClassVar[dict[str, Callable[[ModuleType], None]]] = {
        "dpmodel.training.update": trace_steps,
        "dpmodel.runs.train": name_runs,
    }

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module as it is found without this finder, changed once it is executed."""
        del target
        change = self.changes.get(name)
        spec = PathFinder.find_spec(name, path) if change is not None else None
        if spec is None or spec.loader is None or change is None:
            return None
        execute = spec.loader.exec_module

        def changed(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = changed  # type: ignore[method-assign]
        return spec


if "KILLS_TRACE" in os.environ:
    sys.meta_path.insert(0, _Finder())
