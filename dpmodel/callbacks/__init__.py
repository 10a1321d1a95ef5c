"""Callbacks: objects whose hooks run at every step, epoch and validation of a training."""

from dpmodel.callbacks.base import HOOKS as HOOKS
from dpmodel.callbacks.base import Callback as Callback
from dpmodel.callbacks.base import CallbackList as CallbackList
from dpmodel.callbacks.csv_logger import CSVLogger as CSVLogger
from dpmodel.callbacks.early_stopping import EarlyStopping as EarlyStopping
from dpmodel.callbacks.learning_rate import LearningRateScheduler as LearningRateScheduler
from dpmodel.callbacks.loss_monitor import LossMonitor as LossMonitor
from dpmodel.callbacks.model_checkpoint import CheckpointConfig as CheckpointConfig
from dpmodel.callbacks.model_checkpoint import ModelCheckpoint as ModelCheckpoint
from dpmodel.callbacks.progress_bar import ProgressBar as ProgressBar
from dpmodel.callbacks.registry import CALLBACKS as CALLBACKS
from dpmodel.callbacks.registry import build_callback as build_callback
from dpmodel.callbacks.silence import Silence as Silence
from dpmodel.callbacks.tensorboard_logger import TensorBoardLogger as TensorBoardLogger
from dpmodel.callbacks.weight_averaging import WeightAveraging as WeightAveraging
