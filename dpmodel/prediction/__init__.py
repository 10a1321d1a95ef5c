"""Private prediction: noisy answers of networks that were trained without privacy, each charged to a budget."""

from dpmodel.prediction.answer import NO_LABEL as NO_LABEL
from dpmodel.prediction.answer import Answer as Answer
from dpmodel.prediction.convex import ConvexHead as ConvexHead
from dpmodel.prediction.ensemble import Confidence as Confidence
from dpmodel.prediction.ensemble import EnsembleLogits as EnsembleLogits
from dpmodel.prediction.logits import DPLogits as DPLogits
from dpmodel.prediction.partition import Partition as Partition
from dpmodel.prediction.query_ledger import QueryLedger as QueryLedger
from dpmodel.prediction.query_ledger import QueryStatus as QueryStatus
from dpmodel.prediction.query_ledger import query_status as query_status
from dpmodel.prediction.repeated_queries import AttackPoint as AttackPoint
from dpmodel.prediction.repeated_queries import SamplingAttack as SamplingAttack
from dpmodel.prediction.repeated_queries import advantage_bound as advantage_bound
from dpmodel.prediction.repeated_queries import sampling_attack as sampling_attack
from dpmodel.prediction.student import Student as Student
from dpmodel.prediction.student import train_student as train_student
from dpmodel.prediction.teachers import Teachers as Teachers
from dpmodel.prediction.teachers import TeachersRun as TeachersRun
from dpmodel.prediction.teachers import load_teachers as load_teachers
from dpmodel.prediction.teachers import train_teachers as train_teachers
from monitors.errors import BudgetExhausted as BudgetExhausted
