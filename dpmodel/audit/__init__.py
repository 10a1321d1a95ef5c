"""Audit of a training: canaries in the data, bounds on epsilon, and meters of what is released."""

from typing import Any

from dpmodel.audit.lines import Line as Line
from dpmodel.audit.report import AuditReport as AuditReport
from dpmodel.audit.request import audit as audit


def __getattr__(name: str) -> Any:
    """``attack`` of ``dpmodel.attack``, which imports from this package."""
    if name != "attack":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dpmodel.attack.request import attack

    return attack
