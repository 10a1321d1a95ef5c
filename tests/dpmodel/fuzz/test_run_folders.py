"""Damaged files of a run folder: the same result or a one-line error, nothing changed, epsilon never lower."""

from functools import partial

import pytest

from .apart import failures
from .run_folders import KINDS, Folders

QUICK, ALL = 20, 2500


@pytest.fixture(scope="module", params=sorted(KINDS))
def folders(request, tmp_path_factory):
    return Folders.made(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("action", ["check_reading", "check_resuming"])
def test_a_damaged_folder_is_refused_in_one_line_or_read_as_it_was(folders, action, tmp_path):
    assert failures(partial(getattr(folders, action), place=tmp_path), range(QUICK)) == []


@pytest.mark.slow
@pytest.mark.parametrize("action", ["check_reading", "check_resuming"])
def test_many_damaged_folders_are_refused_in_one_line_or_read_as_they_were(folders, action, tmp_path):
    assert failures(partial(getattr(folders, action), place=tmp_path), range(QUICK, ALL + QUICK)) == []
