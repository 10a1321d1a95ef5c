"""Figures of trainings: metric against epsilon; noise multiplier, norm bound and epsilon against the step."""

from dpmodel.figures.curve import Curve as Curve
from dpmodel.figures.curve import curve_of_run as curve_of_run
from dpmodel.figures.gallery import FIGURES as FIGURES
from dpmodel.figures.gallery import draw_all as draw_all
from dpmodel.figures.runs import draw_runs as draw_runs
