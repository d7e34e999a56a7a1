"""Answering waiting requests together: many rows take hardly longer than a few."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

R = TypeVar("R")
A = TypeVar("A")

FEW_ROWS = 1000
"""The number of rows answered directly. More go to a thread, so that the server stays
responsive."""

TURNS = 4
"""The number of turns of the event loop before each group, in which responses are sent and new
requests read: two turns for the head of a request, and two for its body."""


class _Waiting(NamedTuple):
    """A request, its kind, the function that answers requests of this kind, and its answer."""

    kind: Hashable
    answer: Callable[[list[Any]], Sequence[Any]]
    request: Any
    rows: int
    future: asyncio.Future


class Together:
    """Answers one group of requests at a time, in the order of arrival.

    A group consists of all waiting requests of one kind. Several groups in parallel would only wait
    for each other.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._task: asyncio.Task | None = None

    async def __call__(
        self, kind: Hashable, answer: Callable[[list[R]], Sequence[A]], request: R, rows: int
    ) -> A:
        """Return the answer to a request.

        Parameters
        ----------
        kind
            Requests of one kind may be answered by one call.
        answer
            The function that answers several requests of this kind. If it raises an error, each of
            them is tried alone, so that only the request that caused it gets the error.
        request
            The request.
        rows
            The number of its rows.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(kind, answer, request, rows, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            group = self._next()
            call = partial(outcomes, group[0].answer, [one.request for one in group])
            if sum(one.rows for one in group) <= FEW_ROWS:
                answers = call()
            else:
                answers = await asyncio.get_running_loop().run_in_executor(self._worker, call)
            for one, answer in zip(group, answers, strict=True):
                if one.future.done():  # cancelled
                    continue
                if isinstance(answer, Exception):
                    one.future.set_exception(answer)
                else:
                    one.future.set_result(answer)

    def _next(self) -> list[_Waiting]:
        """Take the longest-waiting request, and others of its kind up to `FEW_ROWS` rows."""
        group, rest, rows = [], deque(), 0
        kind = self._waiting[0].kind
        for one in self._waiting:
            if one.kind == kind and (not group or rows + one.rows <= FEW_ROWS):
                group.append(one)
                rows += one.rows
            else:
                rest.append(one)
        self._waiting = rest
        return group


def outcomes(
    answer: Callable[[list[R]], Sequence[A]], requests: list[R]
) -> Sequence[A | Exception]:
    """Return the answer to each request, or its own error."""
    try:
        return answer(requests)
    except Exception as error:
        if len(requests) == 1:
            return [error]
        return [outcome for one in requests for outcome in outcomes(answer, [one])]
