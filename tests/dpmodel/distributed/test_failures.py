"""A rank that fails, differs or is lost ends the training on all ranks, and never reduces the noise."""

import os
import signal
import time
from pathlib import Path

import pytest

from dpmodel.saving.state import read_state
from monitors import Ledger

from . import ranks
from .launched import finish, results, start

FILE = ranks.__file__


#: The quick tests of two processes are those of ``test_group``; starting more of them takes long.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    return results(FILE, "disturbed", tmp_path_factory.mktemp("disturbed"), 2)


def test_an_error_on_one_rank_ends_the_training_on_all(disturbed):
    first, second = (one["broken"] for one in disturbed)
    assert first[0] == "DistributedError"
    assert "rank 1 failed: RuntimeError: the disk of this rank is full" in first[1]
    assert second[:2] == ["RuntimeError", "the disk of this rank is full"]
    assert first[2:] == second[2:] == [3, 3, [], []]


def test_a_violation_on_one_rank_is_on_every_ledger(disturbed):
    first, second = (one["tampered"] for one in disturbed)
    assert first[0] == "DistributedError"
    assert second[0] == "UnprotectedUpdateError"
    assert first[4] == second[4] != []


def test_a_stop_on_one_rank_stops_all_at_the_same_step(disturbed):
    first, second = (one["stopped"] for one in disturbed)
    assert first == second
    assert first[0] == "finished"
    assert first[2:4] == [3, 3]
    assert "stopped before its planned end" in first[5][0]  # the choice of a callback, on whichever rank


@pytest.mark.parametrize("place", ["begin", "3", "end"])
def test_a_release_of_a_callback_on_rank_0_is_charged_on_every_ledger(disturbed, place):
    for one in disturbed:
        assert one["queried"][f"{place} 0"][:4] == ["finished", "2", 10, 11]


@pytest.mark.parametrize(("place", "steps"), [("begin", 0), ("3", 3), ("end", 10)])
def test_a_release_of_a_callback_on_another_rank_is_refused_before_it_is_made(disturbed, place, steps):
    for one in disturbed:
        found = one["queried"][f"{place} 1"]
        assert found[0] == "DistributedError"
        assert "first_rank_only = True" in found[1]
        assert found[2:4] == [steps, steps]


def test_noise_that_differs_is_refused_before_the_step_is_released(disturbed):
    for one in disturbed:
        assert one["louder"][0] == "DistributedError"
        assert "the release of the step" in one["louder"][1]
        assert one["louder"][2:4] == [3, 3]


def test_fit_can_be_called_twice_with_a_seed_for_the_noise(disturbed):
    assert [one["twice"] for one in disturbed] == [10, 10]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sampling seed", "the seeds"),
        ("learning rate", "the optimizer"),
        ("bound", "the clipping"),
        ("data", "the data set"),
        ("DDP", "network.module"),
    ],
)
def test_ranks_that_differ_are_refused_before_the_first_release(disturbed, name, message):
    for one in disturbed:
        found = one["refused"][name]
        assert found[0] == ("UnsupportedModuleError" if name == "DDP" else "DistributedError")
        assert message in found[1]
        assert found[2:4] == [0, 0]


def test_the_group_can_be_used_again_after_a_failure(disturbed):
    assert disturbed[0]["afterwards"] == disturbed[1]["afterwards"]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3)])
def test_a_training_resumes_with_a_different_number_of_ranks(tmp_path, before, after):
    whole = ranks.save_at(f"{tmp_path}/whole")
    results(FILE, "interrupted", tmp_path, before)
    found = results(FILE, "resumed", tmp_path, after)
    assert all(one == found[0] for one in found)
    assert max(abs(a - b) for a, b in zip(whole["weights"], found[0]["weights"], strict=True)) < 1e-5


def _steps(folder, rank):
    try:
        return int((Path(folder) / f"steps-{rank}").read_text() or 0)
    except FileNotFoundError:
        return 0


def _wait_until(condition, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize(("lost", "after"), [(signal.SIGKILL, 3), (signal.SIGSTOP, 1)], ids=["killed", "too slow"])
def test_a_lost_rank_is_an_error_and_a_folder_that_resumes(tmp_path, lost, after):
    first, second = start(FILE, "long", tmp_path, 2, timeout=15)  # too slow by this
    try:
        _wait_until(lambda: min(_steps(tmp_path, rank) for rank in (0, 1)) >= 6)
        os.kill(second.pid, lost)
        output = finish([first])[0][0]
    finally:
        second.kill()
        first.kill()
    text = next(tmp_path.glob("long-2-0.json")).read_text()
    assert "lost contact" in text, output
    taken = max(_steps(tmp_path, rank) for rank in (0, 1))
    assert Ledger.load(tmp_path / "run" / "ledger.json").total >= taken
    saved = read_state(tmp_path / "run" / "training_state.safetensors").step
    found = results(FILE, "continued", tmp_path, after)
    assert found == [found[0]] * after
    assert found[0][0] == saved + 1
    assert found[0][1] >= taken + 1  # the steps that were lost stay charged
