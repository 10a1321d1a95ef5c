"""Train PyTorch models with differential privacy, with an epsilon that is true.

Importing this package is cheap: each name is imported when it is first used, and torch with the first name that needs
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpmodel.former_places import FormerPlaces
from monitors.lazy_names import loader_of, names_for_type_checkers

__version__ = "0.1.0"

if TYPE_CHECKING:  # the public names: type checkers import them here, and everybody else when they are used
    from dpmodel.callbacks import Callback as Callback
    from dpmodel.callbacks import CheckpointConfig as CheckpointConfig
    from dpmodel.callbacks import CSVLogger as CSVLogger
    from dpmodel.callbacks import EarlyStopping as EarlyStopping
    from dpmodel.callbacks import LearningRateScheduler as LearningRateScheduler
    from dpmodel.callbacks import LossMonitor as LossMonitor
    from dpmodel.callbacks import ModelCheckpoint as ModelCheckpoint
    from dpmodel.callbacks import ProgressBar as ProgressBar
    from dpmodel.callbacks import TensorBoardLogger as TensorBoardLogger
    from dpmodel.callbacks import WeightAveraging as WeightAveraging
    from dpmodel.config import load_config as load_config
    from dpmodel.data import load_dataset as load_dataset
    from dpmodel.data.loader import poisson_loader as poisson_loader
    from dpmodel.metrics import Accuracy as Accuracy
    from dpmodel.model import DPModel as DPModel
    from dpmodel.nets import build_network as build_network
    from dpmodel.optimizers import Momentum as Momentum
    from dpmodel.planning.release import ReleasePlan as ReleasePlan
    from dpmodel.planning.target_epsilon import noise_for_epsilon as noise_for_epsilon
    from dpmodel.preflight.network import fix as fix
    from dpmodel.preflight.network import validate as validate
    from dpmodel.runs.evaluate import evaluate_run as evaluate_run
    from dpmodel.runs.train import train_from_config as train_from_config
    from dpmodel.saving.checkpoint import load_checkpoint as load_checkpoint
    from dpmodel.saving.checkpoint import load_param_into_net as load_param_into_net
    from dpmodel.saving.checkpoint import save_checkpoint as save_checkpoint
    from dpmodel.saving.keeper import StateKeeper as StateKeeper
    from dpmodel.training.history import History as History
    from dpmodel.training.run import Run as Run
    from mechanisms.factory import ClipMechanismsFactory as ClipMechanismsFactory
    from mechanisms.factory import NoiseMechanismsFactory as NoiseMechanismsFactory
    from mechanisms.queries import CountingQuery as CountingQuery
    from mechanisms.queries import LaplaceMechanism as LaplaceMechanism
    from monitors.calibration import calibrate_noise_multiplier as calibrate_noise_multiplier
    from monitors.events import ComposedEvent as ComposedEvent
    from monitors.events import GaussianEvent as GaussianEvent
    from monitors.events import LaplaceEvent as LaplaceEvent
    from monitors.events import PoissonSampledEvent as PoissonSampledEvent
    from monitors.factory import PrivacyMonitorFactory as PrivacyMonitorFactory
    from monitors.ledger import Ledger as Ledger
    from monitors.pld import PLDAccountant as PLDAccountant
    from monitors.rdp import RDPAccountant as RDPAccountant
    from monitors.sampled_gaussian import rdp_sampled_gaussian as rdp_sampled_gaussian
    from monitors.spent import privacy_spent as privacy_spent
    from monitors.zcdp import ZCDPAccountant as ZCDPAccountant
else:  # in an else, because a ``__getattr__`` that type checkers see makes every name known to them
    _EXPORTS = names_for_type_checkers("dpmodel")
    __all__ = sorted(_EXPORTS)
    __getattr__ = loader_of("dpmodel", _EXPORTS, globals())

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


FormerPlaces.install()
