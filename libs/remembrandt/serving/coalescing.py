"""Many callers, few calls: what comes while a call is under way goes together in the next one.

Nobody waits for company: a caller that is alone is served at once, and the busier it gets, the larger the calls.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

AskedT = TypeVar("AskedT")
AnswerT = TypeVar("AnswerT")


class Coalescer(Generic[AskedT, AnswerT]):
    """Passes what is submitted to `work` in lists, with at most `calls` of them under way.

    Args:
        work: a list of questions → as many answers, in order.
        most: of one list.
    """

    def __init__(self, work: Callable[[list[AskedT]], Awaitable[list[AnswerT]]], most: int, calls: int = 2) -> None:
        self._work, self._most, self._calls = work, most, calls
        self._waiting: deque[tuple[AskedT, asyncio.Future[AnswerT]]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, asked: AskedT) -> AnswerT:
        """Its answer; or what `work` raised, which all of its list are told."""
        future: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        self._start()
        return await future

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._calls:
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            task = asyncio.create_task(self._run([place for place in batch if not place[1].cancelled()]))
            self._running.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._start()

    async def _run(self, batch: list[tuple[AskedT, "asyncio.Future[AnswerT]"]]) -> None:
        if not batch:
            return
        try:
            answers = await self._work([asked for asked, _ in batch])
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
