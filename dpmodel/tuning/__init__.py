"""Random search over settings. Its privacy cost is charged to a ledger, or the search is labelled as not accounted."""

from dpmodel.tuning.definition import TuningDefinition as TuningDefinition
from dpmodel.tuning.search import Tuning as Tuning
from dpmodel.tuning.search import load_tuning as load_tuning
from dpmodel.tuning.search import make_tuning as make_tuning
from dpmodel.tuning.trials import TuningRun as TuningRun
from dpmodel.tuning.trials import run_tuning as run_tuning
