"""Damaged configurations: an error that names what is wrong, or checked and ready to train."""

import os
from functools import partial

import pytest

from .apart import failures
from .configurations import check

QUICK = 25

#: ``DPMODEL_FUZZ=full`` runs the number that the documentation states.
ALL = 2000 if os.environ.get("DPMODEL_FUZZ") == "full" else 300


def test_a_damaged_configuration_is_refused_with_its_faults_or_checked(tmp_path):
    assert failures(partial(check, place=tmp_path), range(QUICK)) == []


@pytest.mark.slow
def test_many_damaged_configurations_are_refused_with_their_faults_or_checked(tmp_path):
    assert failures(partial(check, place=tmp_path), range(QUICK, QUICK + ALL)) == []
