"""What tests of several rooms of dpmodel use."""

from __future__ import annotations

import pytest

from dpmodel.training import guard
from mechanisms.engines.bookkeeping import engine
from mechanisms.engines.host_copy import HostCopy


@pytest.fixture
def late_copies(monkeypatch):
    """Lets copies arrive late, as those of a GPU do; returns all that are made."""
    made, make, read = [], HostCopy.__init__, HostCopy.read

    def begin(self, values):
        make(self, values)
        self.unread = True
        made.append(self)

    def arrive(self):
        self.unread = False
        return read(self)

    monkeypatch.setattr(HostCopy, "__init__", begin)
    monkeypatch.setattr(HostCopy, "read", arrive)
    monkeypatch.setattr(HostCopy, "is_late", property(lambda self: self.unread))
    for module in (guard, engine):
        monkeypatch.setattr(module, "costs_a_wait", lambda value: True)
    return made


@pytest.fixture(params=["at once", pytest.param("late", marks=pytest.mark.slow)])
def copies_arrive(request):
    """Runs a test with copies that arrive at once, and with late ones."""
    if request.param == "late":
        request.getfixturevalue("late_copies")
