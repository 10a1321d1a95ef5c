"""Damaged files of a run folder: the same result or a one-line error, nothing changed, epsilon never lower."""

import os
from functools import partial

import pytest

from dpmodel.figures.curve import curve_of_run
from dpmodel.runs.evaluate import evaluate_run
from dpmodel.runs.train import train_from_config

from .apart import failures
from .mutations import copied
from .run_folders import KINDS, Folders

pytestmark = pytest.mark.slow

QUICK = 15

#: Each of two folders is damaged this often for each action: 10,000 readings in all with ``DPMODEL_FUZZ=full``.
FULL = os.environ.get("DPMODEL_FUZZ") == "full"
MANY = {"check_reading": 5000 if FULL else 200, "check_resuming": 1000 if FULL else 40}


@pytest.fixture(scope="module", params=sorted(KINDS))
def folders(request, tmp_path_factory):
    return Folders.made(request.param, tmp_path_factory.mktemp(request.param))


def test_the_folders_are_sound_before_they_are_damaged(folders, tmp_path):
    assert evaluate_run(folders.finished).test_data.same
    assert curve_of_run(folders.finished).steps[-1] == len(folders.released_in_all)
    result = train_from_config(folders.config, copied(folders.interrupted, tmp_path / "run"), resume=True)
    assert result.report.status == "finished"


@pytest.mark.parametrize("action", sorted(MANY))
def test_a_damaged_folder_is_refused_in_one_line_or_read_as_it_was(folders, action, tmp_path):
    assert failures(partial(getattr(folders, action), place=tmp_path), range(QUICK)) == []


@pytest.mark.parametrize("action", sorted(MANY))
def test_many_damaged_folders_are_refused_in_one_line_or_read_as_they_were(folders, action, tmp_path):
    assert failures(partial(getattr(folders, action), place=tmp_path), range(QUICK, QUICK + MANY[action])) == []
