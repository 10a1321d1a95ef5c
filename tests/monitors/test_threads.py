"""Several threads record on one ledger: no release is lost, and no filter allows more than fits."""

import copy
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from monitors import BudgetExceededError, GaussianEvent, Ledger, PrivacyFilter

THREADS = 4


def in_threads(function):
    barrier = threading.Barrier(THREADS)

    def started():
        barrier.wait()
        return function()

    with ThreadPoolExecutor(THREADS) as pool:
        return [each.result() for each in [pool.submit(started) for _ in range(THREADS)]]


class Slow(int):
    """Lets another thread take its turn whenever it is read, between what it is added to and the sum."""

    def __int__(self):
        time.sleep(1e-3)
        return int.__index__(self)

    def __radd__(self, other):
        return other + int(self)


def test_no_release_is_lost():
    ledger, times = Ledger(), 20
    in_threads(lambda: [ledger.record(GaussianEvent(2.0), Slow(1)) for _ in range(times)])
    assert ledger.total == sum(run[2] for run in ledger.origins) == THREADS * times


def test_each_run_gets_partitions_of_its_own():
    ledger = Ledger()
    firsts = in_threads(lambda: [ledger.reserve_partitions(Slow(2)) for _ in range(20)])
    assert len({first for found in firsts for first in found}) == THREADS * 20


def test_a_filter_allows_what_fits_and_no_more(frequent_switches):
    alone, shared = PrivacyFilter(3.0, 1e-5), PrivacyFilter(3.0, 1e-5)

    def charge(filter_):
        done = 0
        try:
            while True:
                filter_.charge(GaussianEvent(30.0))
                done += 1
        except BudgetExceededError:
            return done

    fits = charge(alone)
    assert sum(in_threads(lambda: charge(shared))) == shared.ledger.total == fits
    assert shared.spent <= shared.budget


@pytest.mark.parametrize("again", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_has_a_lock_of_its_own(again):
    ledger = Ledger().record(GaussianEvent(2.0), 3)
    with ledger._lock, ThreadPoolExecutor(1) as pool:
        copied = again(ledger)
        pool.submit(copied.record, GaussianEvent(2.0)).result(timeout=60)
    assert (ledger.total, copied.total) == (3, 4)
