"""Figures of one or several trainings: metric against epsilon; noise, bound and epsilon against the step."""

from dpmodel.figures.gallery import FIGURES as FIGURES
from dpmodel.figures.gallery import draw_all as draw_all
from dpmodel.figures.runs import draw_runs as draw_runs
from dpmodel.figures.strand import Strand as Strand
from dpmodel.figures.strand import strand_of_run as strand_of_run
