"""Compares mechanisms at equal epsilon: variants x seeds, each calibrated for its schedule and clipping."""

from dpmodel.compare.comparison import Comparison as Comparison
from dpmodel.compare.comparison import load_comparison as load_comparison
from dpmodel.compare.comparison import make_comparison as make_comparison
from dpmodel.compare.joining import join_comparison as join_comparison
from dpmodel.compare.results import ComparisonResult as ComparisonResult
from dpmodel.compare.runner import run_comparison as run_comparison
