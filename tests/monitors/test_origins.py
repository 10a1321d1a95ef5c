"""A release is the same on copies, merged ledgers and files, and different from all equal ones."""

import copy
import json
import os
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import DisjointEvent, GaussianEvent, Ledger
from monitors.origins import Origins

EVENTS = st.one_of(
    st.sampled_from([GaussianEvent(1.0), GaussianEvent(2.0)]),
    st.builds(DisjointEvent, st.integers(0, 2), st.just(GaussianEvent(1.0))),
)
ROWS = st.lists(st.tuples(EVENTS, st.integers(1, 3), st.booleans()), max_size=6)


def built(rows):
    ledger = Ledger()
    for event, count, lost in rows:
        ledger.record(event, count, lost=lost)
    return ledger


def from_file(ledger):
    return Ledger.from_json(ledger.to_json())


def older(ledger):
    """The ledger as a version without identities wrote it."""
    return Ledger.from_rows(ledger.row_dicts(), ledger.notes)


COPIES = [Ledger.copy, copy.deepcopy, from_file, lambda ledger: pickle.loads(pickle.dumps(ledger)), Ledger().merge]


@given(ROWS, ROWS, st.sampled_from(COPIES))
@settings(max_examples=40, deadline=None)
def test_copies_merges_and_files_hold_the_same_releases_and_no_others(first, second, copied):
    one, two = built(first), built(second)
    other = copied(one)
    assert other.origins == one.origins
    assert other.holds(one)
    assert one.holds(other)
    assert one.merge(two).holds(two)
    assert from_file(two.merge(other)).holds(one)
    assert one.number_outside(two) == one.total
    assert one.lost.merge(one.kept).holds(one)
    assert one.lost.number_outside(one.kept) == one.lost.total
    for count in (0, 1, 4):
        assert one.holds(one.head(count))
        assert one.number_outside(one.head(count)) == max(0, one.total - count)


@given(ROWS, st.sampled_from(COPIES))
@settings(max_examples=20, deadline=None)
def test_what_a_copy_records_is_not_what_the_original_records(rows, copied):
    one = built(rows)
    other = copied(one)
    for ledger in (one, other):
        ledger.record(GaussianEvent(1.0))
    assert one.number_outside(other) == other.number_outside(one) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_forked_process_records_is_not_what_its_parent_records():
    ledger, (reader, writer) = Ledger().record(GaussianEvent(1.0)), os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, ledger.record(GaussianEvent(1.0)).to_json().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = Ledger.from_json(os.read(reader, 2**16).decode())
    assert ledger.record(GaussianEvent(1.0)).number_outside(theirs) == 1
    for handle in (reader, writer):
        os.close(handle)


def test_releases_without_identity_stand_for_equal_ones_only():
    one = Ledger().record(GaussianEvent(1.0), 2).record(GaussianEvent(2.0))
    assert older(one).holds(one)
    assert older(one).holds(older(one))
    assert one.number_outside(older(one.head(2))) == 1
    assert older(one).number_outside(one) == 3  # an identity on the other side does not fit
    assert older(one).number_outside(Ledger().record(GaussianEvent(1.0), 5)) == 3
    mixed = older(one).record(GaussianEvent(2.0))
    assert from_file(mixed).holds(mixed)


def test_partitions_are_compared_as_a_whole():
    release = GaussianEvent(2.0)
    epoch, epochs = Ledger(), Ledger()
    for partition in range(4):
        epoch.record(DisjointEvent(0, release))
        epochs.record(DisjointEvent(partition, release))
    assert epochs.covers(epoch)
    assert not epoch.covers(epochs)
    assert epochs.beyond(epoch).total == 3
    assert epoch.merge(epochs).covers(epochs.merge(epoch))
    halves = Ledger().record(DisjointEvent(5, release), 2).record(DisjointEvent(7, release), 2)
    assert halves.covers(epoch)
    assert not epoch.covers(halves)
    assert epoch.beyond(halves).total == 0
    different = Ledger().record(DisjointEvent(0, GaussianEvent(1.0)))
    assert different.beyond(epoch).rows == different.rows


@given(ROWS, ROWS)
@settings(max_examples=40, deadline=None)
def test_what_covers_another_ledger_costs_at_least_as_much(first, second):
    from monitors import RDPAccountant

    one, two = built(first), built(second)
    accountant = RDPAccountant()
    assert accountant.epsilon(one.merge(two.beyond(one)), 1e-5) >= accountant.epsilon(two, 1e-5) * (1 - 1e-12)
    assert one.merge(two).covers(two)
    assert one.covers(two) == (two.beyond(one).total == 0)


def test_the_file_states_few_identities_and_an_earlier_version_reads_it():
    ledger = Ledger()
    for step in range(1000):
        ledger.record(GaussianEvent(1.0 + step))
    values = json.loads(ledger.to_json())
    assert len(values.pop("origins")) == 1
    assert Ledger.from_json(json.dumps(values)) == ledger
    assert values["digest"] == ledger.digest() == Ledger.from_rows(ledger.row_dicts()).digest()


@pytest.mark.parametrize(
    "wrong",
    [3, "a", [["a", 0]], [["a", 0, 1]], [["a", 0, 3]], [["a", -1, 2]], [["a", 0, True], ["a", 1, 1]], [[1, 0, 2]]],
)
def test_malformed_identities_are_refused(wrong):
    ledger = Ledger().record(GaussianEvent(1.0), 2)
    with pytest.raises(ValueError, match="origins"):
        Ledger.from_rows(ledger.row_dicts(), (), wrong)


def test_overlapping_stretches_count_once():
    origins = Origins([("a", 0, 4), ("b", 0, 1), ("a", 2, 4)])
    assert list(Origins([("a", 1, 6)]).missing([2, 4], origins)) == [0, 1]
