"""Former place of ``dpmodel.metrics.METRICS``; plugins that import it from here keep working."""

from dpmodel.metrics.names import METRICS as METRICS
from dpmodel.metrics.names import Metric as Metric
from dpmodel.metrics.names import MetricSpec as MetricSpec
