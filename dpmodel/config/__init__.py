"""The configuration of a training: YAML to frozen, checked sections. Loads no torch."""

from dpmodel.config.faults import locating_errors as locating_errors
from dpmodel.config.reader import load_config as load_config
from dpmodel.config.reader import make_config as make_config
from dpmodel.config.schema import Config as Config
