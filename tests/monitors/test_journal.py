import errno
import hashlib
import json
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.errors import CheckpointError
from monitors.events import GaussianEvent, PoissonSampledEvent
from monitors.journal import MOST_ANNOUNCED, ReleaseJournal
from monitors.ledger import Ledger

EVENT = PoissonSampledEvent(0.1, GaussianEvent(1.5))
OTHER = PoissonSampledEvent(0.1, GaussianEvent(0.5))


def _total(rows):
    return sum(count for _, count in rows)


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
        found = [_total(rows) for rows in ReleaseJournal(path).announced(head)]
        assert found == expected
        assert sum(found) >= released


def test_the_rest_of_a_block_is_announced_again_after_a_change_of_the_schedule(journal):
    head = journal.head
    journal.announce(0, [EVENT] * 4)
    journal.announce(1, [OTHER] * 3)
    assert journal.announced(head) == [[(EVENT, 1), (OTHER, 3)]]


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
    assert [_total(rows) for rows in journal.announced(head)][:2] == [0, 3]


def test_a_last_line_without_its_newline_counts(journal):
    head = journal.head
    journal.begin(0)
    journal.announce(0, [EVENT] * 3)
    journal.path.write_bytes(journal.path.read_bytes()[:-1])
    again = ReleaseJournal(journal.path)
    assert again.head == journal.head
    assert again.announced(head)[-1] == [(EVENT, 3)]
    again.begin(3)
    again.announce(3, [EVENT])
    assert ReleaseJournal(journal.path).head == again.head
    assert ReleaseJournal(journal.path).announced(head)[-1] == [(EVENT, 1)]


@pytest.mark.parametrize("written", [True, False])
def test_an_append_that_was_interrupted_does_not_spoil_the_next(journal, written, monkeypatch):
    journal.begin(0)
    head = journal.head

    def interrupted(handle):
        if not written:
            os.ftruncate(handle, os.fstat(handle).st_size - 30)  # as on a full disk
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.announce(0, [EVENT] * 3)
    journal.finish("failed", "abc")
    again = ReleaseJournal(journal.path)
    assert (again.head, again.end) == (journal.head, ("failed", "abc"))
    assert again.announced(head) == [[(EVENT, 3)] if written else []]


def test_two_trainings_have_no_head_in_common(tmp_path):
    one, other = (ReleaseJournal(tmp_path / name) for name in "ab")
    for journal in (one, other):
        journal.begin(0)
        journal.announce(0, [EVENT])
    assert one.training != other.training
    assert not one.follows(other.head)
    assert ReleaseJournal(one.path).training == one.training
    assert one.has(2, one.head)
    assert not one.has(1, one.head)
    assert not one.has(9, one.head)


def test_releases_that_are_not_steps_count_besides_the_steps(journal):
    journal.begin(0)
    head = journal.head
    journal.announce(0, [EVENT] * 3)
    journal.record(GaussianEvent(0.5), 2)
    journal.announce(1, [OTHER] * 2)
    assert journal.announced(head) == [[(EVENT, 1), (GaussianEvent(0.5), 2), (OTHER, 2)]]


def test_a_journal_has_an_end_until_the_next_process_begins(journal):
    journal.begin(0)
    assert journal.end is None
    journal.finish("finished", "abc")
    assert ReleaseJournal(journal.path).end == ("finished", "abc")
    journal.begin(2)
    assert ReleaseJournal(journal.path).end is None


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
    assert again.announced(head) == [[(EVENT, 4)]]


@pytest.mark.parametrize("failing", ["write", "fsync", "sync_folder"])
@pytest.mark.parametrize("lines", [0, 2])
def test_a_line_that_a_full_disk_cut_off_is_not_glued_to_the_next(journal, monkeypatch, failing, lines):
    for step in range(lines):
        journal.begin(step)
    head, write = journal.head, os.write

    def fail(*arguments):
        if failing == "write":
            write(arguments[0], arguments[1][:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("monitors.journal.sync_folder" if failing == "sync_folder" else f"os.{failing}", fail)
        if failing != "sync_folder" or not lines:
            with pytest.raises(OSError, match=r"No space left on device: '.*releases\.jsonl'"):
                journal.begin(7)
            # A line that was written as a whole counts, even if it may not survive a power cut.
            assert (journal.head == head) == (failing == "write")
    whole = len(journal)
    journal.begin(8)
    assert ReleaseJournal(journal.path).head == journal.head
    assert len(journal.path.read_bytes().splitlines()) == whole + 1


@pytest.mark.parametrize("change", ["removed", "longer", "shorter", "link", "pipe"])
def test_a_journal_that_somebody_else_changes_or_removes_is_not_continued(journal, tmp_path, change):
    journal.begin(0)
    journal.begin(1)
    content = journal.path.read_bytes()
    (tmp_path / "other").write_bytes(content)
    journal.path.unlink()
    {
        "removed": lambda: None,
        "longer": lambda: journal.path.write_bytes(content + content.splitlines(keepends=True)[-1]),
        "shorter": lambda: journal.path.write_bytes(content.splitlines(keepends=True)[0]),
        "link": lambda: journal.path.symlink_to(tmp_path / "other"),
        "pipe": lambda: os.mkfifo(journal.path),
    }[change]()
    with pytest.raises(CheckpointError, match=r"releases\.jsonl (cannot be written|has [\d,]+ bytes instead of)"):
        journal.begin(2)
    assert (tmp_path / "other").read_bytes() == content
    assert os.path.lexists(journal.path) == (change != "removed")
    if change in ("link", "pipe"):
        with pytest.raises(CheckpointError, match=r"cannot be read: (it is a link|not a regular)"):
            ReleaseJournal(journal.path)


def append_line(journal, value):
    """Add a line that states ``value``, with the right digest."""
    text = json.dumps(value, sort_keys=True)
    digest = hashlib.sha256(f"{journal.head} {text}".encode()).hexdigest()
    journal.path.write_text(f"{digest} {text}\n")


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
    append_line(journal, line)
    with pytest.raises(CheckpointError, match=r"releases.jsonl, line 1: \w+Error: ") as caught:
        ReleaseJournal(journal.path)
    assert "\n" not in str(caught.value)


def test_deeply_nested_lines_are_refused(journal):
    value = []
    for _ in range(200):
        value = [value]
    append_line(journal, value)
    with pytest.raises(CheckpointError, match="line 1: ValueError: JSON nested deeper than 64 levels"):
        ReleaseJournal(journal.path)


def test_a_journal_of_any_size_is_refused_without_reading_it(journal):
    with journal.path.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(CheckpointError, match=r"releases\.jsonl cannot be read: larger than"):
        ReleaseJournal(journal.path)


@pytest.mark.parametrize("times", [0, 10**7 + 1])
def test_a_line_that_could_not_be_read_back_is_not_written(journal, times):
    journal.begin(0)
    before = journal.path.read_bytes()
    with pytest.raises(CheckpointError, match=r"releases\.jsonl, line 2: ValueError: "):
        journal.record(EVENT, times)
    assert journal.path.read_bytes() == before
    journal.announce(0, [EVENT])
    assert len(ReleaseJournal(journal.path)) == 2


@pytest.mark.parametrize("name", ["write", "fsync", "close"])
def test_an_interrupt_anywhere_in_a_write_leaves_a_journal_that_goes_on(journal, name, monkeypatch):
    journal.begin(0)
    real = getattr(os, name)

    def interrupted(*arguments):
        real(*arguments)
        monkeypatch.setattr(os, name, real)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        journal.announce(0, [EVENT])
    journal.announce(1, [EVENT])
    again = ReleaseJournal(journal.path)
    assert (again.head, len(again)) == (journal.head, 3)


def test_a_journal_whose_reading_was_interrupted_is_not_continued(journal, monkeypatch):
    journal.begin(0)
    before = journal.path.read_bytes()

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    monkeypatch.setattr("monitors.journal.read_without_links", interrupted)
    with pytest.raises(KeyboardInterrupt):
        journal.announce(0, [EVENT])
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="nothing more is released"):
        journal.announce(0, [EVENT])
    assert journal.path.read_bytes() == before


def test_more_releases_since_a_file_than_can_be_held_are_refused(journal):
    head = journal.head
    for _ in range(2):
        journal.record(EVENT, MOST_ANNOUNCED // 2)
    assert _total(journal.announced(head)[0]) == MOST_ANNOUNCED
    journal.record(EVENT)
    with pytest.raises(CheckpointError, match="10,000,001 releases beyond its ledger are more than 10,000,000"):
        journal.announced(head)


def test_as_many_releases_as_can_be_held_are_read_at_once(journal, tmp_path):
    Ledger().save(tmp_path / "ledger.json", journal=journal.head)
    journal.record(EVENT, MOST_ANNOUNCED)
    begin = time.process_time()
    assert Ledger.load(tmp_path / "ledger.json").total == MOST_ANNOUNCED
    assert time.process_time() - begin < 1  # one by one, they take half a minute


def test_a_line_of_more_releases_than_can_be_held_is_refused(journal):
    row = [EVENT.to_dict(), MOST_ANNOUNCED // 2]
    append_line(journal, {"kind": "recorded", "rows": [row, row, row]})
    with pytest.raises(CheckpointError, match="line 1: ValueError: 15000000 releases are more than"):
        ReleaseJournal(journal.path)


def test_a_rest_that_is_announced_again_counts_once(journal):
    head = journal.head
    for step in range(5):
        journal.announce(step, [EVENT] * 300_000)
    assert _total(journal.announced(head)[0]) == 300_004
