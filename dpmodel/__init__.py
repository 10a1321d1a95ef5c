"""Train PyTorch models with differential privacy, with an epsilon that is true.

Importing this package is cheap: each name is loaded from its module when it is first used, and torch with the first
name that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpmodel.former_places import FormerPlaces
from monitors.lazy_names import loader_of

__version__ = "0.1.0"

__all__ = [
    "Accuracy",
    "CSVLogger",
    "Callback",
    "CheckpointConfig",
    "ClipMechanismsFactory",
    "ComposedEvent",
    "CountingQuery",
    "DPModel",
    "EarlyStopping",
    "GaussianEvent",
    "History",
    "LaplaceEvent",
    "LaplaceMechanism",
    "LearningRateScheduler",
    "Ledger",
    "LossMonitor",
    "ModelCheckpoint",
    "Momentum",
    "NoiseMechanismsFactory",
    "PLDAccountant",
    "PoissonSampledEvent",
    "PrivacyMonitorFactory",
    "ProgressBar",
    "RDPAccountant",
    "ReleasePlan",
    "Run",
    "StateKeeper",
    "TensorBoardLogger",
    "WeightAveraging",
    "ZCDPAccountant",
    "build_network",
    "calibrate_noise_multiplier",
    "evaluate_run",
    "fix",
    "load_checkpoint",
    "load_config",
    "load_dataset",
    "load_param_into_net",
    "noise_for_epsilon",
    "poisson_loader",
    "privacy_spent",
    "rdp_sampled_gaussian",
    "save_checkpoint",
    "train_from_config",
    "validate",
]

#: Public name -> module that defines it.
_EXPORTS = {
    "Accuracy": "dpmodel.metrics",
    "CSVLogger": "dpmodel.callbacks",
    "Callback": "dpmodel.callbacks",
    "CheckpointConfig": "dpmodel.callbacks",
    "ClipMechanismsFactory": "mechanisms.factory",
    "ComposedEvent": "monitors.events",
    "CountingQuery": "mechanisms.queries",
    "DPModel": "dpmodel.model",
    "EarlyStopping": "dpmodel.callbacks",
    "GaussianEvent": "monitors.events",
    "History": "dpmodel.training.history",
    "LaplaceEvent": "monitors.events",
    "LaplaceMechanism": "mechanisms.queries",
    "LearningRateScheduler": "dpmodel.callbacks",
    "Ledger": "monitors.ledger",
    "LossMonitor": "dpmodel.callbacks",
    "ModelCheckpoint": "dpmodel.callbacks",
    "Momentum": "dpmodel.optimizers",
    "NoiseMechanismsFactory": "mechanisms.factory",
    "PLDAccountant": "monitors.pld",
    "PoissonSampledEvent": "monitors.events",
    "PrivacyMonitorFactory": "monitors.factory",
    "ProgressBar": "dpmodel.callbacks",
    "RDPAccountant": "monitors.rdp",
    "ReleasePlan": "dpmodel.planning.release",
    "Run": "dpmodel.training.run",
    "StateKeeper": "dpmodel.saving.keeper",
    "TensorBoardLogger": "dpmodel.callbacks",
    "WeightAveraging": "dpmodel.callbacks",
    "ZCDPAccountant": "monitors.zcdp",
    "build_network": "dpmodel.nets",
    "calibrate_noise_multiplier": "monitors.calibration",
    "evaluate_run": "dpmodel.runs.evaluate",
    "fix": "dpmodel.preflight.network",
    "load_checkpoint": "dpmodel.saving.checkpoint",
    "load_config": "dpmodel.config",
    "load_dataset": "dpmodel.data",
    "load_param_into_net": "dpmodel.saving.checkpoint",
    "noise_for_epsilon": "dpmodel.planning.target_epsilon",
    "poisson_loader": "dpmodel.data.loader",
    "privacy_spent": "monitors.spent",
    "rdp_sampled_gaussian": "monitors.sampled_gaussian",
    "save_checkpoint": "dpmodel.saving.checkpoint",
    "train_from_config": "dpmodel.runs.train",
    "validate": "dpmodel.preflight.network",
}

if TYPE_CHECKING:
    from dpmodel.callbacks import (
        Callback,
        CheckpointConfig,
        CSVLogger,
        EarlyStopping,
        LearningRateScheduler,
        LossMonitor,
        ModelCheckpoint,
        ProgressBar,
        TensorBoardLogger,
        WeightAveraging,
    )
    from dpmodel.config import load_config
    from dpmodel.data import load_dataset
    from dpmodel.data.loader import poisson_loader
    from dpmodel.metrics import Accuracy
    from dpmodel.model import DPModel
    from dpmodel.nets import build_network
    from dpmodel.optimizers import Momentum
    from dpmodel.planning.release import ReleasePlan
    from dpmodel.planning.target_epsilon import noise_for_epsilon
    from dpmodel.preflight.network import fix, validate
    from dpmodel.runs.evaluate import evaluate_run
    from dpmodel.runs.train import train_from_config
    from dpmodel.saving.checkpoint import load_checkpoint, load_param_into_net, save_checkpoint
    from dpmodel.saving.keeper import StateKeeper
    from dpmodel.training.history import History
    from dpmodel.training.run import Run
    from mechanisms.factory import ClipMechanismsFactory, NoiseMechanismsFactory
    from mechanisms.queries import CountingQuery, LaplaceMechanism
    from monitors.calibration import calibrate_noise_multiplier
    from monitors.events import ComposedEvent, GaussianEvent, LaplaceEvent, PoissonSampledEvent
    from monitors.factory import PrivacyMonitorFactory
    from monitors.ledger import Ledger
    from monitors.pld import PLDAccountant
    from monitors.rdp import RDPAccountant
    from monitors.sampled_gaussian import rdp_sampled_gaussian
    from monitors.spent import privacy_spent
    from monitors.zcdp import ZCDPAccountant
else:  # a function of the module that type checkers see would make every name known to them
    __getattr__ = loader_of("dpmodel", _EXPORTS, globals())

FormerPlaces.install()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
