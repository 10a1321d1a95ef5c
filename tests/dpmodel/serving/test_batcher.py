"""Requests that arrive together are answered together; what one of them does wrong does not reach the others."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.prediction import Answer, BudgetExhausted
from dpmodel.serving.batcher import QueryBatcher, RefusedRowsError
from monitors.errors import CheckpointError


class Ledger:
    """Answers each row with itself, up to a budget; counts charges."""

    def __init__(self, budget=10**9, fail=None):
        self.budget, self.fail = budget, fail
        self.asked = self.charges = 0
        self.first = threading.Event()

    def query(self, rows):
        if (rows == -1).any():
            raise IndexError("index out of range in self")
        if len(rows) > self.budget - self.asked:
            raise BudgetExhausted(len(rows), self.budget - self.asked, 1.0, 1.0, 1e-5)
        self.first.wait()  # so that the others arrive meanwhile
        self.asked += len(rows)
        self.charges += 1
        if self.fail is not None:
            raise self.fail
        return Answer(rows)

    def batcher(self, **options):
        return QueryBatcher(self.query, lambda: self.asked, **options)


def ask_all(ledger, requests, **options):
    """The answers to requests that arrive while the first is being answered, and the number of passes."""

    async def main():
        batcher = ledger.batcher(**options)
        tasks = [asyncio.create_task(batcher.ask(rows)) for rows in requests]
        await asyncio.sleep(0)
        ledger.first.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()
        return found, batcher.passes

    return asyncio.run(main())


def rows(count, value=0.0):
    return torch.full((count, 2), value, dtype=torch.float64)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 8))
def test_everyone_gets_the_answer_to_what_they_asked(sizes, most_rows):
    ledger = Ledger()
    found, passes = ask_all(ledger, [rows(size, value) for value, size in enumerate(sizes)], most_rows=most_rows)
    assert all(
        torch.equal(answer.scores, rows(size, value))
        for value, (answer, size) in enumerate(zip(found, sizes, strict=True))
    )
    assert ledger.asked == sum(sizes)
    assert ledger.charges == passes


def test_requests_that_arrive_together_are_charged_once():
    ledger = Ledger()
    found, passes = ask_all(ledger, [rows(1)] * 50)
    assert len(found) == 50
    assert passes == ledger.charges == 1


def test_requests_are_refused_one_by_one_if_they_do_not_fit_together():
    ledger = Ledger(budget=5)
    found, _ = ask_all(ledger, [rows(3), rows(3), rows(1), rows(2)])
    assert [type(answer) for answer in found] == [Answer, BudgetExhausted, Answer, BudgetExhausted]
    assert (found[1].asked, found[1].left) == (3, 2)
    assert ledger.asked == 4


def test_rows_that_the_network_cannot_take_are_refused_alone():
    ledger = Ledger()
    found, _ = ask_all(ledger, [rows(1), rows(2, -1.0), rows(3)])
    assert [type(answer) for answer in found] == [Answer, RefusedRowsError, Answer]
    assert ledger.asked == 4


def test_answers_that_were_charged_and_lost_are_not_charged_again():
    ledger = Ledger(fail=CheckpointError("the disk is full"))
    found, passes = ask_all(ledger, [rows(1), rows(2)])
    assert [type(answer) for answer in found] == [CheckpointError] * 2
    assert ledger.asked == 3
    assert passes == 1


def test_a_request_that_was_given_up_before_its_turn_costs_nothing():
    ledger = Ledger()

    async def main():
        batcher = ledger.batcher(most_rows=1)
        first, second, third = (asyncio.create_task(batcher.ask(rows(1))) for _ in range(3))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.sleep(0)
        ledger.first.set()
        await asyncio.gather(first, third)
        await batcher.close()

    asyncio.run(main())
    assert ledger.asked == 2


def test_a_batcher_answers_again_after_a_pause():
    ledger = Ledger()
    ledger.first.set()

    async def main():
        batcher = ledger.batcher()
        for _ in range(3):
            await batcher.ask(rows(1))
            await asyncio.sleep(0.01)
        await batcher.close()
        with pytest.raises(RuntimeError, match="shutdown"):
            await batcher.ask(rows(1))

    asyncio.run(main())
    assert ledger.charges == 3
