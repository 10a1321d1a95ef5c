"""States the privacy that was spent: events, the ledger, accountants, calibration and monitors. No torch in here.

Names load on first use, so that ``import monitors`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "events": (
        "ComposedEvent",
        "DisjointEvent",
        "GaussianEvent",
        "NonPrivateEvent",
        "PoissonSampledEvent",
        "PrivacyEvent",
        "RandomStoppingEvent",
        "RepeatedEvent",
        "compose",
        "event_from_dict",
        "register_event",
    ),
    "ledger": ("Ledger",),
    "terms": ("SampledGaussian", "gaussian_terms"),
    "renyi": ("renyi_curve", "sampled_renyi_curve"),
    "sampled_gaussian": ("rdp_sampled_gaussian",),
    "gaussian": ("gaussian_delta", "gaussian_epsilon", "gaussian_mu"),
    "accountant": (
        "ACCOUNTANTS",
        "Accountant",
        "PrivacySpent",
        "Tracker",
        "describe_sampling",
        "privacy_spent",
        "resolve_accountant",
    ),
    "rdp": ("RDPAccountant",),
    "zcdp": ("ZCDPAccountant", "zcdp_rho"),
    "pld": ("PLDAccountant",),
    "calibration": (
        "calibrate_noise_multiplier",
        "calibrate_parameter",
        "decay_rate_for",
        "max_steps",
    ),
    "monitor": ("PrivacyMonitor",),
    "run_view": ("RunView",),
    "factory": ("PrivacyMonitorFactory",),
    "privacy_filter": ("BudgetGuard", "PrivacyFilter"),
    "neighbours": ("group_epsilon", "group_privacy", "replace_one_epsilon"),
    "tuning": ("best_of", "best_of_random", "training_event"),
    "errors": (
        "BudgetExceededError",
        "CalibrationError",
        "CheckpointError",
        "ConfigError",
        "DPModelError",
        "DataError",
        "MissingDataError",
        "MonitorMismatchError",
        "NonFiniteGradientsError",
        "PrivacyWarning",
        "UnprotectedUpdateError",
        "UnsupportedEventError",
        "UnsupportedLoaderError",
        "UnsupportedModuleError",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'monitors' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"monitors.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
