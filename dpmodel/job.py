"""Former place of ``dpmodel.train_from_config``; code that imports it from here keeps working."""

from dpmodel.runs.train import train_from_config as train_from_config
