"""Private statistics of data sets, such as mean and variance, each release recorded on a ledger."""

from dpmodel.statistics.moments import private_mean_and_variance as private_mean_and_variance
from dpmodel.statistics.private_statistics import PrivateStatistics as PrivateStatistics
from dpmodel.statistics.standardise import Standardise as Standardise
