"""Damaged configurations: an error that names what is wrong, or checked and ready to train."""

from functools import partial

import pytest

from .apart import failures
from .configurations import check

QUICK, ALL = 25, 2000


def test_a_damaged_configuration_is_refused_with_its_faults_or_checked(tmp_path):
    assert failures(partial(check, place=tmp_path), range(QUICK)) == []


@pytest.mark.slow
def test_many_damaged_configurations_are_refused_with_their_faults_or_checked(tmp_path):
    assert failures(partial(check, place=tmp_path), range(QUICK, QUICK + ALL)) == []
