"""Ledger and events: append-only, run-length encoded, and unchanged by a round trip."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import (
    ComposedEvent,
    DisjointEvent,
    GaussianEvent,
    Ledger,
    NonPrivateEvent,
    PoissonSampledEvent,
    RandomStoppingEvent,
    RepeatedEvent,
    UnsupportedEventError,
    ViolationEvent,
    event_from_dict,
)
from monitors.journal import JOURNAL_NAME, ReleaseJournal
from monitors.ledger_file import ANNOUNCED_NOTE

gaussians = st.builds(GaussianEvent, st.floats(0.01, 100))
simple = gaussians | st.builds(NonPrivateEvent)
events = st.recursive(
    simple,
    lambda inner: (
        st.builds(PoissonSampledEvent, st.floats(1e-7, 1.0), inner)
        | st.builds(ComposedEvent, st.lists(inner, min_size=1, max_size=3).map(tuple))
        | st.builds(DisjointEvent, st.integers(0, 5), inner)
        | st.builds(RepeatedEvent, inner, st.integers(1, 9))
        | st.builds(RandomStoppingEvent, inner, st.floats(1.5, 50), st.sampled_from(["geometric", "poisson"]))
    ),
    max_leaves=4,
)
ledgers = st.lists(st.tuples(events, st.integers(1, 5), st.booleans()), max_size=6)


def built(rows, notes=()):
    ledger = Ledger(notes)
    for event, count, lost in rows:
        ledger.record(event, count, lost=lost)
    return ledger


@given(ledgers)
@settings(max_examples=60, deadline=None)
def test_a_ledger_is_the_same_after_a_round_trip_through_json(rows):
    ledger = built(rows, ["reproducible noise"])
    again = Ledger.from_json(ledger.to_json())
    assert again == ledger
    assert again.digest() == ledger.digest()
    assert again.notes == ledger.notes


@given(events)
@settings(max_examples=60, deadline=None)
def test_every_event_is_the_same_after_a_round_trip_through_a_dictionary(event):
    assert event_from_dict(json.loads(json.dumps(event.to_dict()))) == event


@given(ledgers)
@settings(max_examples=30, deadline=None)
def test_recording_one_by_one_equals_recording_with_a_count(rows):
    slow = Ledger()
    for event, count, lost in rows:
        for _ in range(count):
            slow.record(event, lost=lost)
    assert slow == built(rows)
    assert slow.total == sum(count for _, count, _ in rows)


@given(ledgers, ledgers)
@settings(max_examples=30, deadline=None)
def test_lost_rows_count_like_all_others_and_stay_marked(first, second):
    ledger = built(first)
    assert ledger.kept.total == sum(count for _, count, lost in first if not lost)
    assert ledger.kept.total + ledger.lost.total == ledger.total
    merged = ledger.merge(built(second))
    assert merged.lost.total == ledger.lost.total + built(second).lost.total
    assert merged.copy() == merged
    unmarked = Ledger()
    for event, count in ledger:
        unmarked.record(event, count)
    assert (unmarked == ledger) == (ledger.lost.total == 0)
    assert (unmarked.digest() == ledger.digest()) == (unmarked == ledger)


def test_a_ledger_can_be_extended_with_itself():
    ledger = Ledger().record(DisjointEvent(0, GaussianEvent(2.0)), 2)
    ledger.extend(ledger, shift=1)
    assert [(event.partition, count) for event, count in ledger] == [(0, 2), (1, 2)]


@given(ledgers, ledgers)
@settings(max_examples=30, deadline=None)
def test_merging_keeps_all_releases_and_never_shares_a_partition(first, second):
    one, two = built(first), built(second)
    merged = one.merge(two)
    assert merged.total == one.total + two.total
    own = {event.partition for event, _ in one if isinstance(event, DisjointEvent)}
    others = [event.partition for event, _ in merged.rows_from(len(one.rows)) if isinstance(event, DisjointEvent)]
    if len(merged.rows) == len(one.rows) + len(two.rows):
        assert own.isdisjoint(others)


def test_a_constant_schedule_is_one_row():
    ledger = Ledger()
    for _ in range(1000):
        ledger.record(PoissonSampledEvent(0.1, GaussianEvent(1.0)))
    assert len(ledger.rows) == 1
    assert ledger.total == 1000


def test_a_changed_file_is_refused(tmp_path):
    path = tmp_path / "ledger.json"
    Ledger().record(GaussianEvent(1.0), 7).save(path)
    assert Ledger.load(path).total == 7
    path.write_text(path.read_text().replace('"count": 7', '"count": 6'))
    with pytest.raises(ValueError, match="changed"):
        Ledger.load(path)


def test_an_unknown_event_type_is_refused_with_the_nearest_name():
    with pytest.raises(UnsupportedEventError, match="did you mean 'GaussianEvent'"):
        event_from_dict({"type": "GausianEvent", "noise_multiplier": 1.0})


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_wrong_count_is_refused(count):
    with pytest.raises(ValueError, match="count"):
        Ledger().record(GaussianEvent(1.0), count)


def test_anything_but_an_event_is_refused():
    with pytest.raises(UnsupportedEventError, match=r"got 1\.5"):
        Ledger().record(1.5)


@pytest.mark.parametrize("multiplier", [0.0, -1.0, float("nan"), float("inf"), "1"])
def test_a_wrong_multiplier_is_refused(multiplier):
    with pytest.raises(ValueError, match="noise_multiplier"):
        GaussianEvent(multiplier)


@pytest.mark.parametrize(("runs", "distribution"), [(1.0, "geometric"), (0.0, "poisson"), (5.0, "uniform")])
def test_a_wrong_random_stopping_is_refused(runs, distribution):
    with pytest.raises(ValueError, match=r"expected_runs|distribution"):
        RandomStoppingEvent(GaussianEvent(1.0), runs, distribution)


def test_a_ledger_under_way_is_read_with_all_that_its_journal_announced_since(tmp_path):
    path, journal = tmp_path / "ledger.json", ReleaseJournal(tmp_path / JOURNAL_NAME)
    event = DisjointEvent(0, GaussianEvent(2.0))
    journal.begin(0)
    journal.announce(0, [event] * 4)
    ledger = Ledger().record(event, 2)
    ledger.save(path, journal=journal.head)  # earlier announcements no longer count
    assert Ledger.load(path) == ledger
    journal.announce(2, [event] * 2)
    assert Ledger.load(path).rows == ((event, 4),)
    assert Ledger.load(path).notes == (ANNOUNCED_NOTE,)
    journal.begin(2)  # a different process draws different batches, so its part of the epoch is a separate partition
    journal.announce(2, [event] * 2)
    journal.violate(3, "the weights were overwritten")
    found = Ledger.load(path)
    assert found.rows[:2] == ((event, 4), (DisjointEvent(1, GaussianEvent(2.0)), 2))
    assert found.violations == ("the weights were overwritten",)
    found.save(path, journal=journal.head, complete=True)
    assert Ledger.load(path) == found


def test_a_ledger_under_way_is_refused_without_its_journal_and_after_a_change(tmp_path):
    path, journal = tmp_path / "ledger.json", ReleaseJournal(tmp_path / JOURNAL_NAME)
    journal.begin(0)
    Ledger().record(GaussianEvent(2.0)).save(path, journal=journal.head)
    text = path.read_text()
    with pytest.raises(ValueError, match=r"read the file in its folder, with Ledger\.load"):
        Ledger.from_json(text)
    path.write_text(text.replace(journal.head, "0" * 64))
    with pytest.raises(ValueError, match="was changed after it was written"):
        Ledger.load(path)
    path.write_text(text)
    journal.path.unlink()
    with pytest.raises(ValueError, match=r"releases\.jsonl beside it is missing, older"):
        Ledger.load(path)


GAUSSIAN = {"type": "GaussianEvent", "noise_multiplier": 1.0}


def nested(levels):
    event = GAUSSIAN
    for _ in range(levels):
        event = {"type": "ComposedEvent", "events": [event]}
    return event


@pytest.mark.parametrize(
    "row",
    [
        *({"event": GAUSSIAN, "count": count} for count in (True, 1.5, 0, -1, 10**400, 2**63, "1", None, [1])),
        *(
            {"event": {"type": "GaussianEvent", "noise_multiplier": value}, "count": 1}
            for value in (float("nan"), float("inf"), -1, 0, 10**400, True, "1", None, [], GAUSSIAN)
        ),
        *(
            {"event": {"type": "PoissonSampledEvent", "sampling_rate": rate, "event": GAUSSIAN}, "count": 1}
            for rate in (1.5, 0, -1, float("nan"), 10**400, "1", True)
        ),
        {"event": {"type": "DisjointEvent", "partition": -1, "event": GAUSSIAN}, "count": 1},
        {"event": {"type": "RepeatedEvent", "count": 10**400, "event": GAUSSIAN}, "count": 1},
        {"event": {"type": ["GaussianEvent"], "noise_multiplier": 1.0}, "count": 1},
        {"event": GAUSSIAN | {"more": 1}, "count": 1},
        {"event": GAUSSIAN | {"a\nb": 1}, "count": 1},
        {"event": nested(1000), "count": 1},
        {"event": nested(20), "count": 1},
        {"event": GAUSSIAN, "count": 1, "lost": 1},
        {"event": [], "count": 1},
        {"count": 1},
        [],
        3,
        None,
    ],
)
def test_a_row_that_no_ledger_writes_is_refused_in_one_line(row):
    with pytest.raises((ValueError, KeyError, TypeError)) as caught:
        Ledger.from_rows([row])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("notes", ["x", [1], {"a": 1}, 3])
def test_notes_are_a_list_of_texts(notes):
    with pytest.raises(TypeError, match="the notes must be a list of texts"):
        Ledger.from_rows([], notes)


@pytest.fixture
def trained(tmp_path):
    """Path, ledger and journal of a training that has ended."""
    path, journal = tmp_path / "ledger.json", ReleaseJournal(tmp_path / JOURNAL_NAME)
    journal.begin(0)
    journal.announce(0, [GaussianEvent(2.0)] * 4)
    ledger = Ledger().record(GaussianEvent(2.0), 4)
    ledger.save(path, journal=journal.head, complete=True)
    journal.finish("finished", ledger.digest())
    return path, ledger, journal


def test_the_complete_ledger_of_a_training_can_be_copied_alone(trained, tmp_path):
    path, ledger, journal = trained
    assert Ledger.load(path) == ledger
    assert Ledger.from_json(path.read_text()) == ledger
    journal.path.unlink()
    assert Ledger.load(path) == ledger
    with pytest.raises(ValueError, match=r"releases\.jsonl beside it is missing"):
        Ledger.load(path, alone=False)


def test_an_emptied_or_foreign_or_earlier_ledger_beside_a_journal_is_refused(trained, tmp_path):
    path, ledger, journal = trained
    Ledger().save(path)
    with pytest.raises(ValueError, match=r"not written by the training of releases\.jsonl"):
        Ledger.load(path)
    Ledger().save(path, journal=journal.head, complete=True)
    with pytest.raises(ValueError, match="for the end of the training"):
        Ledger.load(path)
    other = ReleaseJournal(tmp_path / "other.jsonl")
    other.begin(0)
    ledger.save(path, journal=other.head, complete=True)
    with pytest.raises(ValueError, match="of a different training"):
        Ledger.load(path)
    path.write_text("")
    with pytest.raises(ValueError, match="not JSON"):
        Ledger.load(path)


def test_an_earlier_ledger_of_a_training_gets_all_that_was_announced_since(trained):
    path, _, journal = trained
    journal.begin(4)
    journal.announce(4, [GaussianEvent(2.0)] * 3)
    assert Ledger.load(path).total == 7


def test_a_ledger_may_be_read_while_its_training_ends(trained, monkeypatch, tmp_path):
    path, ledger, journal = trained
    journal.begin(4)
    ledger.save(path, journal=journal.head)
    journal.announce(4, [GaussianEvent(2.0)] * 5)
    final, seen = ledger.copy().record(GaussianEvent(2.0), 2), []

    def ends_first(beside):
        if not seen:
            final.save(path, journal=journal.head, complete=True)
            journal.finish("stopped", final.digest())
        seen.append(beside)
        return ReleaseJournal(beside)

    monkeypatch.setattr("monitors.ledger.ReleaseJournal", ends_first)
    assert Ledger.load(path) == final


@given(st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.booleans()), max_size=20), st.integers(0, 20))
def test_violations_are_those_of_the_rows_whenever_they_are_read(records, kept):
    ledger, expected = Ledger(), []
    for number, (reason, read) in enumerate(records):
        inside = (
            RepeatedEvent(ViolationEvent(reason), 2) if reason and number % 2 else reason and ViolationEvent(reason)
        )
        ledger.record(inside or GaussianEvent(2.0))
        if reason and reason not in expected:
            expected.append(reason)
        if read:
            assert ledger.violations == tuple(expected)
            ledger.add_note("read")
    assert ledger.violations == ledger.copy().violations == Ledger.from_json(ledger.to_json()).violations
    part = ledger.head(kept)
    assert part.violations == Ledger.from_rows(part.row_dicts()).violations
