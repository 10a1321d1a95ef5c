from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.saving.journal import ReleaseJournal
from monitors.events import GaussianEvent, PoissonSampledEvent

EVENT = PoissonSampledEvent(0.1, GaussianEvent(1.5))


@settings(max_examples=40, deadline=None)
@given(reserved=st.lists(st.integers(1, 5), min_size=1, max_size=6), saved=st.data())
def test_lost_steps_are_those_announced_beyond_the_state(reserved, saved, tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "releases.jsonl"
    journal, expected, step = ReleaseJournal(path), [], 0
    for size in reserved:
        journal.begin_block(step, [EVENT] * size)
        kept = saved.draw(st.integers(0, size))
        polite = saved.draw(st.booleans())
        if polite:
            journal.rest(step + kept)
        journal = ReleaseJournal(path)
        before = journal.head
        journal.resume(step + kept)
        lost = 0 if polite else size - kept
        assert [ledger.total for ledger in journal.lost(since=before)] == [lost] * (lost > 0)
        expected += [lost] * (lost > 0)
        step += kept
    for whole in (journal, ReleaseJournal(path)):
        assert [ledger.lost.total for ledger in whole.lost()] == expected
    assert journal.lost(since=journal.head) == []


def test_a_line_that_was_cut_off_had_not_begun_and_does_not_spoil_the_next(tmp_path):
    journal = ReleaseJournal(tmp_path / "releases.jsonl")
    journal.begin_block(0, [EVENT] * 3)
    journal.begin_block(3, [EVENT] * 3)
    for length in range(1, 40, 7):
        content = journal.path.read_bytes()
        journal.path.write_bytes(content + b'1234 {"kind": "block", "step": 6, "ro'[:length])
        assert ReleaseJournal(journal.path).head == journal.head
        assert journal.path.read_bytes() == content
    journal = ReleaseJournal(journal.path)
    journal.resume(3)
    assert [ledger.total for ledger in ReleaseJournal(journal.path).lost()] == [3]


def test_a_violation_is_kept_and_changes_nothing_about_what_was_lost(tmp_path):
    journal = ReleaseJournal(tmp_path / "releases.jsonl")
    journal.begin_block(0, [EVENT] * 4)
    journal.violate(2, "the weights were overwritten")
    journal.resume(1)
    again = ReleaseJournal(journal.path)
    assert again.violations == ("the weights were overwritten",)
    assert [ledger.total for ledger in again.lost()] == [3]
    assert ReleaseJournal(tmp_path / "other.jsonl").violations == ()
