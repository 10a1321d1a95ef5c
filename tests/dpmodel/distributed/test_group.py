"""Two processes train like one: the same rows, ledger and epsilon, and noise that is drawn once."""

import os
import signal

import pytest

from dpmodel.distributed.group import _uninterrupted
from dpmodel.training.interrupt import SIGNALS, handling

from . import ranks
from .launched import results

FILE = ranks.__file__

pytestmark = pytest.mark.slow


def _close(one, other, tolerance=1e-6):
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in zip(one, other, strict=True)) < tolerance


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two ranks finds in ``ranks.quick``."""
    return results(FILE, "quick", tmp_path_factory.mktemp("quick"), 2)


def test_both_ranks_hold_the_same_weights_ledger_and_history(both):
    first, second = both
    for name in ("secret", *ranks.CASES, "adaptive"):
        assert first[name] == second[name], name


@pytest.mark.parametrize("name", list(ranks.CASES))
def test_two_ranks_train_like_one_process(both, name):
    alone, first = ranks.compared(name), both[0][name]
    assert _close(alone["weights"], first["weights"])
    assert _close(alone["losses"], first["losses"], 1e-5) or name == "empty batches"
    assert (alone["ledger"], alone["epsilon"], alone["notes"]) == tuple(
        first[k] for k in ("ledger", "epsilon", "notes")
    )


def test_the_ledger_is_that_of_one_process(both):
    alone = ranks.trained()
    assert (alone["ledger"], alone["epsilon"]) == (both[0]["secret"]["ledger"], both[0]["secret"]["epsilon"])
    assert alone["weights"] != both[0]["secret"]["weights"]  # the noise is secret


def test_the_noise_has_the_stated_standard_deviation_whole(both):
    (first, weights), (second, same) = (one["noise"] for one in both)
    assert first == second
    assert weights == same
    # Its relative standard error is 0.5 %. Noise from both ranks would give 1.414, half of it 0.5 or 0.707.
    assert 0.975 < first < 1.025


def test_the_adaptive_bound_is_that_of_rank_0(both):
    assert both[0]["adaptive"]["bound"] != 1.0
    assert both[0]["adaptive"]["ledger"] != both[0]["secret"]["ledger"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_until_an_exchange_is_complete(number):
    received = []
    with handling(lambda number, frame: received.append(number), [number]):
        signal.signal(number, lambda number, frame: received.append(number))  # also if the tests run under nohup
        with _uninterrupted():
            os.kill(os.getpid(), number)
            assert not received
        assert received == [number]


def test_every_engine_adds_up_over_the_ranks(tmp_path):
    first, second = results(FILE, "engines", tmp_path, 2)
    for name, alone in ranks.engines(0, tmp_path).items():
        assert first[name] == second[name]
        assert _close(alone["weights"], first[name]["weights"]), name


def test_worker_processes_draw_ahead_on_every_rank(tmp_path):
    first, second = results(FILE, "workers", tmp_path, 2)
    assert first == second
    assert first[1][:3] == [3, 3, 1]  # the interruption of rank 1 has stopped both before the fourth step
    assert _close(ranks.workers(0, tmp_path)[0], first[0])
