"""Former names of modules: importing one gives the module at its new place, with a deprecation warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Former name of a module -> its present name.
FORMER = {
    "dpmodel.additivity": "dpmodel.training.batch_check",
    "dpmodel.build": "dpmodel.runs.build",
    "dpmodel.checkpoint": "dpmodel.saving.checkpoint",
    "dpmodel.compat": "dpmodel.preflight.network",
    "dpmodel.evaluation": "dpmodel.runs.evaluate",
    "dpmodel.history": "dpmodel.training.history",
    "dpmodel.job": "dpmodel.runs.train",
    "dpmodel.metric_names": "dpmodel.metrics.names",
    "dpmodel.plan": "dpmodel.planning.training_plan",
    "dpmodel.release": "dpmodel.planning.release",
    "dpmodel.run": "dpmodel.training.run",
    "dpmodel.runfolder": "dpmodel.runs.folder",
    "dpmodel.state_keeper": "dpmodel.saving.keeper",
    "dpmodel.target_epsilon": "dpmodel.planning.target_epsilon",
    "mechanisms.schedules": "monitors.schedules",
}


class FormerPlaces(MetaPathFinder, Loader):
    """Finds modules by their former names.

    Example:
        >>> FormerPlaces.install()
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     from dpmodel.release import ReleasePlan
        >>> ReleasePlan.__module__
        'dpmodel.planning.release'
    """

    @classmethod
    def install(cls) -> None:
        """Register this finder as the last one."""
        if not any(isinstance(finder, cls) for finder in sys.meta_path):
            sys.meta_path.append(cls())

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module specification, if ``fullname`` is a former name."""
        del path, target
        return ModuleSpec(fullname, self) if fullname in FORMER else None

    def exec_module(self, module: ModuleType) -> None:
        """Replace ``module`` with the module at its present place."""
        former = module.__name__
        warnings.warn(
            f"{former} is now {FORMER[former]}; import its public names from dpmodel",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[former] = import_module(FORMER[former])
