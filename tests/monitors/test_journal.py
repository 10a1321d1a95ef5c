import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.errors import CheckpointError
from monitors.events import GaussianEvent, PoissonSampledEvent
from monitors.journal import ReleaseJournal

EVENT = PoissonSampledEvent(0.1, GaussianEvent(1.5))
OTHER = PoissonSampledEvent(0.1, GaussianEvent(0.5))


@pytest.fixture
def journal(tmp_path):
    return ReleaseJournal(tmp_path / "releases.jsonl")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_journal_announces_at_least_what_was_released_since_a_file(data, tmp_path_factory):
    """Trains in blocks, writes a file now and then, is killed anywhere, and starts again from the latest file."""
    path = tmp_path_factory.mktemp("journal") / "releases.jsonl"
    saved, head, expected = 0, None, []
    for _ in range(data.draw(st.integers(1, 4))):
        journal, step, released, announced = ReleaseJournal(path), saved, 0, 0
        journal.begin(step)
        expected.append(0)
        if head is None:
            head, expected = journal.head, [0]
        for size in data.draw(st.lists(st.integers(1, 5), max_size=4)):
            journal.announce(step, [EVENT] * size)
            done, writes = data.draw(st.integers(0, size)), data.draw(st.booleans())
            step, released, announced = step + done, released + done, announced + done
            if writes:
                saved, head, released, announced, expected = step, journal.head, 0, 0, [0]
                continue
            expected[-1] = announced + (size - done)
        found = [len(events) for events in ReleaseJournal(path).announced(head)]
        assert found == expected
        assert sum(found) >= released


def test_the_rest_of_a_block_is_announced_again_after_a_change_of_the_schedule(journal):
    head = journal.head
    journal.announce(0, [EVENT] * 4)
    journal.announce(1, [OTHER] * 3)
    assert journal.announced(head) == [[EVENT, OTHER, OTHER, OTHER]]


def test_an_incomplete_line_is_ignored_and_does_not_spoil_the_next(journal):
    head = journal.head
    journal.begin(0)
    journal.announce(0, [EVENT] * 3)
    for length in range(1, 40, 7):
        content = journal.path.read_bytes()
        journal.path.write_bytes(content + b'1234 {"kind": "block", "step": 6, "ro'[:length])
        torn = ReleaseJournal(journal.path)
        assert torn.head == journal.head
        journal = torn
        journal.begin(3)
        assert journal.path.read_bytes().startswith(content)
        assert ReleaseJournal(journal.path).head == journal.head
    assert [len(events) for events in journal.announced(head)][:2] == [0, 3]


def test_reading_changes_nothing_in_the_file(journal):
    journal.announce(0, [EVENT])
    torn = journal.path.read_bytes() + b"12"
    journal.path.write_bytes(torn)
    ReleaseJournal(journal.path)
    assert journal.path.read_bytes() == torn


def test_a_changed_line_is_refused_and_a_journal_follows_the_heads_it_had(journal):
    heads = [journal.head]
    for step in range(3):
        journal.announce(step, [EVENT])
        heads.append(journal.head)
    assert all(ReleaseJournal(journal.path).follows(head) for head in heads)
    assert not journal.follows("0" * 64)
    journal.path.write_bytes(journal.path.read_bytes().replace(b'"step": 1', b'"step": 2'))
    with pytest.raises(CheckpointError, match="line 2: the record of releases was changed"):
        ReleaseJournal(journal.path)


def test_a_violation_is_kept_and_changes_nothing_about_what_was_announced(journal):
    head = journal.head
    journal.announce(0, [EVENT] * 4)
    journal.violate(2, "the weights were overwritten")
    again = ReleaseJournal(journal.path)
    assert again.violations == ("the weights were overwritten",)
    assert again.announced(head) == [[EVENT] * 4]


@pytest.mark.parametrize(
    "line",
    [
        3,
        [],
        {},
        {"kind": "begun", "step": -1},
        {"kind": "begun", "step": True},
        {"kind": "other", "step": 0},
        {"kind": "violation", "step": 0, "reason": ""},
        {"kind": "block", "step": 0, "rows": 3},
        {"kind": "block", "step": 0, "rows": [3]},
        {"kind": "block", "step": 0, "rows": [[EVENT.to_dict(), 10**12]]},
        {"kind": "block", "step": 0, "rows": [[EVENT.to_dict(), -1]]},
        {"kind": "block", "step": 0, "rows": [[{"type": "x"}, 1]]},
    ],
)
def test_a_line_that_no_journal_writes_is_refused_even_with_the_right_digest(journal, line):
    journal._append(line)
    with pytest.raises(CheckpointError, match=r"releases.jsonl, line 1: \w+Error: ") as caught:
        ReleaseJournal(journal.path)
    assert "\n" not in str(caught.value)


def test_deeply_nested_lines_are_refused(journal):
    value = []
    for _ in range(200):
        value = [value]
    journal._append(value)
    with pytest.raises(CheckpointError, match="line 1: ValueError: JSON nested deeper than 64 levels"):
        ReleaseJournal(journal.path)


def test_a_journal_of_any_size_is_refused_without_reading_it(journal):
    with journal.path.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(CheckpointError, match=r"the record of releases cannot be read: .* is larger than"):
        ReleaseJournal(journal.path)
