import pytest

from dpmodel.preflight import batches, readings


@pytest.fixture(autouse=True)
def _enough_time(monkeypatch):
    """Let the checks read all that they want to, however busy the machine is."""
    monkeypatch.setattr(readings, "SECONDS", 60.0)
    monkeypatch.setattr(batches, "_SECONDS", 60.0)
