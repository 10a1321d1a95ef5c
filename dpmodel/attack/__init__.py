"""Membership inference: attacks that tell training examples from others, beside what the ledger allows."""

from dpmodel.attack.limits import Limit as Limit
from dpmodel.attack.methods import ATTACKS as ATTACKS
from dpmodel.attack.methods import RMIA as RMIA
from dpmodel.attack.methods import Attack as Attack
from dpmodel.attack.methods import LabelOnlySampling as LabelOnlySampling
from dpmodel.attack.methods import LiRA as LiRA
from dpmodel.attack.methods import LossThreshold as LossThreshold
from dpmodel.attack.methods import OfflineLiRA as OfflineLiRA
from dpmodel.attack.report import AttackReport as AttackReport
from dpmodel.attack.report import Measure as Measure
from dpmodel.attack.request import attack as attack
from dpmodel.attack.roc import RocCurve as RocCurve
