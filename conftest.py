"""What tests and examples in docstrings share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest

# One process per core runs tests already, and the processes that tests start inherit this. Threads would wait for each
# other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """Spare the thousands of collected tests when garbage is collected."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_answers_of_other_tests() -> Iterator[None]:
    """A ledger with answers is remembered by the process, and a later training would note that it was forgotten."""
    yield
    answers = sys.modules.get("mechanisms.answers")
    if answers is not None:
        for ledger in answers.asked_ledgers():
            answers.forget_asked(ledger)
