"""What several tests of private prediction use."""

from __future__ import annotations

import pytest

from dpmodel.prediction import QueryLedger


@pytest.fixture
def ledger(tmp_path):
    """A query ledger with a budget of epsilon 8."""
    with QueryLedger(tmp_path / "queries", 8.0, 1e-5) as opened:
        yield opened
