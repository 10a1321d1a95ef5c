"""Queries of many clients, answered together: one pass of the network, one charge, one write to the disk."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from dpmodel.prediction.answer import Answer
from monitors.errors import DataError, DPModelError

#: Most rows of one pass.
MOST_ROWS = 1024


class RefusedRowsError(DataError):
    """The network cannot take rows of the right shape and type, such as tokens beyond its vocabulary."""


@dataclass
class _Request:
    rows: Tensor
    answer: asyncio.Future[Answer]


class QueryBatcher:
    """Collects the requests that arrive while earlier ones are answered, and answers them together.

    One thread answers, so charges never overlap. If requests do not fit the budget together, or one of them makes the
    network fail before anything is charged, each is answered or refused by itself, in the order of arrival. A request
    that was given up before its turn costs nothing.

    Args:
        query: Answers rows, and charges them first.
        asked: Number of answers that were charged so far.
        most_rows: Most rows that are answered together; a single larger request is answered alone.
    """

    def __init__(
        self, query: Callable[[Tensor], Answer], asked: Callable[[], int], *, most_rows: int = MOST_ROWS
    ) -> None:
        self._query, self._asked, self._most_rows = query, asked, most_rows
        self._waiting: deque[_Request] = deque()
        self._thread = ThreadPoolExecutor(1, "dpmodel-queries")
        self._worker: asyncio.Task[None] | None = None
        #: Number of passes so far.
        self.passes = 0

    async def ask(self, rows: Tensor) -> Answer:
        """The answer to each row.

        Raises:
            BudgetExhausted: They do not fit. Nothing was charged for them.
            RefusedRowsError: The network fails on them. Nothing was charged for them.
            DPModelError, OSError: The charge, or an answer that is kept, cannot be written.
        """
        request = _Request(rows, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await request.answer

    async def close(self) -> None:
        """Answer what is waiting, and end the thread."""
        if self._worker is not None:
            await asyncio.wait([self._worker])
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            group = self._next()
            if not group:
                continue
            self.passes += 1
            try:
                found = await loop.run_in_executor(self._thread, self._answered, [each.rows for each in group])
            except BaseException as error:
                found = [error] * len(group)
            for request, answer in zip(group, found, strict=True):
                if request.answer.done():  # the client has gone; its rows stay charged
                    continue
                if isinstance(answer, BaseException):
                    request.answer.set_exception(answer)
                else:
                    request.answer.set_result(answer)

    def _next(self) -> list[_Request]:
        """The requests to answer together: of one shape, and not given up."""
        group: list[_Request] = []
        total = 0
        while self._waiting:
            request = self._waiting[0]
            if not request.answer.done():
                if group and total + len(request.rows) > self._most_rows:
                    break
                group.append(request)
                total += len(request.rows)
            self._waiting.popleft()
        return group

    def _answered(self, group: list[Tensor]) -> list[Answer | BaseException]:
        before = self._asked()
        try:
            answer = self._query(torch.cat(group) if len(group) > 1 else group[0])
        except Exception as error:
            if self._asked() != before:  # charged, and lost
                return [error] * len(group)
            if len(group) > 1:
                return [found for rows in group for found in self._answered([rows])]
            if isinstance(error, (DPModelError, OSError)):
                return [error]
            refused = RefusedRowsError("the network cannot take these rows, although their shape and type are right")
            refused.__cause__ = error
            return [refused]
        return [Answer(scores, answer.votes) for scores in answer.scores.split([len(rows) for rows in group])]
