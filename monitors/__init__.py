"""States the privacy that was spent: events, the ledger, accountants, calibration and monitors. No torch in here.

Names load on first use, so that ``import monitors`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitors.lazy_names import loader_of

__all__ = [
    "ACCOUNTANTS",
    "Accountant",
    "BudgetExceededError",
    "BudgetGuard",
    "CalibrationError",
    "CheckpointError",
    "ComposedEvent",
    "ConfigError",
    "DPModelError",
    "DataError",
    "DisjointEvent",
    "GaussianEvent",
    "LaplaceEvent",
    "Ledger",
    "MissingDataError",
    "MonitorMismatchError",
    "NonFiniteGradientsError",
    "NonPrivateEvent",
    "PLDAccountant",
    "PoissonSampledEvent",
    "PrivacyEvent",
    "PrivacyFilter",
    "PrivacyMonitor",
    "PrivacyMonitorFactory",
    "PrivacySpent",
    "PrivacyWarning",
    "RDPAccountant",
    "RandomStoppingEvent",
    "RepeatedEvent",
    "RunView",
    "SampledGaussian",
    "Tracker",
    "UnprotectedUpdateError",
    "UnsupportedEventError",
    "UnsupportedLoaderError",
    "UnsupportedModuleError",
    "ViolationEvent",
    "ZCDPAccountant",
    "best_of",
    "best_of_random",
    "calibrate_noise_multiplier",
    "calibrate_parameter",
    "compose",
    "decay_rate_for",
    "describe_sampling",
    "event_from_dict",
    "event_losses",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_mu",
    "gaussian_terms",
    "group_epsilon",
    "group_privacy",
    "max_steps",
    "privacy_spent",
    "rdp_sampled_gaussian",
    "register_event",
    "relation_of",
    "renyi_curve",
    "replace_one_epsilon",
    "resolve_accountant",
    "sampled_renyi_curve",
    "training_event",
    "zcdp_rho",
]

#: Public name -> module that defines it.
_EXPORTS = {
    "ACCOUNTANTS": "monitors.accountant",
    "Accountant": "monitors.accountant",
    "BudgetExceededError": "monitors.errors",
    "BudgetGuard": "monitors.privacy_filter",
    "CalibrationError": "monitors.errors",
    "CheckpointError": "monitors.errors",
    "ComposedEvent": "monitors.events",
    "ConfigError": "monitors.errors",
    "DPModelError": "monitors.errors",
    "DataError": "monitors.errors",
    "DisjointEvent": "monitors.events",
    "GaussianEvent": "monitors.events",
    "LaplaceEvent": "monitors.events",
    "Ledger": "monitors.ledger",
    "MissingDataError": "monitors.errors",
    "MonitorMismatchError": "monitors.errors",
    "NonFiniteGradientsError": "monitors.errors",
    "NonPrivateEvent": "monitors.events",
    "PLDAccountant": "monitors.pld",
    "PoissonSampledEvent": "monitors.events",
    "PrivacyEvent": "monitors.events",
    "PrivacyFilter": "monitors.privacy_filter",
    "PrivacyMonitor": "monitors.monitor",
    "PrivacyMonitorFactory": "monitors.factory",
    "PrivacySpent": "monitors.spent",
    "PrivacyWarning": "monitors.errors",
    "RDPAccountant": "monitors.rdp",
    "RandomStoppingEvent": "monitors.events",
    "RepeatedEvent": "monitors.events",
    "RunView": "monitors.run_view",
    "SampledGaussian": "monitors.terms",
    "Tracker": "monitors.accountant",
    "UnprotectedUpdateError": "monitors.errors",
    "UnsupportedEventError": "monitors.errors",
    "UnsupportedLoaderError": "monitors.errors",
    "UnsupportedModuleError": "monitors.errors",
    "ViolationEvent": "monitors.events",
    "ZCDPAccountant": "monitors.zcdp",
    "best_of": "monitors.tuning",
    "best_of_random": "monitors.tuning",
    "calibrate_noise_multiplier": "monitors.calibration",
    "calibrate_parameter": "monitors.calibration",
    "compose": "monitors.events",
    "decay_rate_for": "monitors.calibration",
    "describe_sampling": "monitors.spent",
    "event_from_dict": "monitors.events",
    "event_losses": "monitors.pld",
    "gaussian_delta": "monitors.gaussian",
    "gaussian_epsilon": "monitors.gaussian",
    "gaussian_mu": "monitors.gaussian",
    "gaussian_terms": "monitors.terms",
    "group_epsilon": "monitors.neighbours",
    "group_privacy": "monitors.neighbours",
    "max_steps": "monitors.calibration",
    "privacy_spent": "monitors.spent",
    "rdp_sampled_gaussian": "monitors.sampled_gaussian",
    "register_event": "monitors.events",
    "relation_of": "monitors.relation",
    "renyi_curve": "monitors.renyi",
    "replace_one_epsilon": "monitors.neighbours",
    "resolve_accountant": "monitors.spent",
    "sampled_renyi_curve": "monitors.renyi",
    "training_event": "monitors.tuning",
    "zcdp_rho": "monitors.zcdp",
}

if TYPE_CHECKING:
    from monitors.accountant import ACCOUNTANTS, Accountant, Tracker
    from monitors.calibration import calibrate_noise_multiplier, calibrate_parameter, decay_rate_for, max_steps
    from monitors.errors import (
        BudgetExceededError,
        CalibrationError,
        CheckpointError,
        ConfigError,
        DataError,
        DPModelError,
        MissingDataError,
        MonitorMismatchError,
        NonFiniteGradientsError,
        PrivacyWarning,
        UnprotectedUpdateError,
        UnsupportedEventError,
        UnsupportedLoaderError,
        UnsupportedModuleError,
    )
    from monitors.events import (
        ComposedEvent,
        DisjointEvent,
        GaussianEvent,
        LaplaceEvent,
        NonPrivateEvent,
        PoissonSampledEvent,
        PrivacyEvent,
        RandomStoppingEvent,
        RepeatedEvent,
        ViolationEvent,
        compose,
        event_from_dict,
        register_event,
    )
    from monitors.factory import PrivacyMonitorFactory
    from monitors.gaussian import gaussian_delta, gaussian_epsilon, gaussian_mu
    from monitors.ledger import Ledger
    from monitors.monitor import PrivacyMonitor
    from monitors.neighbours import group_epsilon, group_privacy, replace_one_epsilon
    from monitors.pld import PLDAccountant, event_losses
    from monitors.privacy_filter import BudgetGuard, PrivacyFilter
    from monitors.rdp import RDPAccountant
    from monitors.relation import relation_of
    from monitors.renyi import renyi_curve, sampled_renyi_curve
    from monitors.run_view import RunView
    from monitors.sampled_gaussian import rdp_sampled_gaussian
    from monitors.spent import PrivacySpent, describe_sampling, privacy_spent, resolve_accountant
    from monitors.terms import SampledGaussian, gaussian_terms
    from monitors.tuning import best_of, best_of_random, training_event
    from monitors.zcdp import ZCDPAccountant, zcdp_rho
else:  # a function of the module that type checkers see would make every name known to them
    __getattr__ = loader_of("monitors", _EXPORTS, globals())


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
