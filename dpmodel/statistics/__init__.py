"""Private statistics of data sets, such as mean and variance, each release recorded on a ledger."""

from dpmodel.statistics.least_squares import PrivateLinear as PrivateLinear
from dpmodel.statistics.least_squares import private_least_squares as private_least_squares
from dpmodel.statistics.moments import private_mean_and_variance as private_mean_and_variance
from dpmodel.statistics.private_statistics import PrivateStatistics as PrivateStatistics
from dpmodel.statistics.standardise import Standardise as Standardise
