"""What tests of several rooms of mechanisms use."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch


@pytest.fixture
def without_waiting():
    """A context in which every synchronisation that torch detects is an error."""

    @contextmanager
    def watched():
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return watched
