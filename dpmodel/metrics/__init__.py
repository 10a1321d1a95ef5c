"""Validation metrics, given as names, objects, or functions of outputs and targets."""

from dpmodel.metrics.metric_set import MetricSet as MetricSet
from dpmodel.metrics.names import METRICS as METRICS
from dpmodel.metrics.names import Accuracy as Accuracy
from dpmodel.metrics.names import Metric as Metric
from dpmodel.metrics.names import MetricSpec as MetricSpec
