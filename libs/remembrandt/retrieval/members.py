"""The actors behind a pool: which one to ask next, and what happens when one dies. Runs in the pool's event loop."""

import asyncio
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from remembrandt.databases.database import Check
from remembrandt.distributed import plain_error
from remembrandt.progress import say
from remembrandt.retrieval.actor import DatabaseActor

_LOST = (RayActorError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)
"""What Ray raises when the process behind a call is gone; the call may be made again, because actors only read."""


class Member:
    """One actor under a fixed name. Ray restarts it when its process dies; if Ray gave it up, a new one takes its name.

    Args:
        arguments: of `DatabaseActor`.
        options: of the Ray actor.
    """

    def __init__(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.name = name
        self.in_flight = 0
        self.recovery: asyncio.Task[int] | None = None
        self.last_loss = ""
        self._arguments = arguments
        self._options = {**options, "name": name, "get_if_exists": True, "max_restarts": -1, "max_task_retries": 0}
        # All of them are kept: Ray ends an actor when the handle that started it is forgotten.
        self._handles: list[Any] = []

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Calls the actor once.

        Raises:
            one of `_LOST`: the actor is gone; its recovery is under way then.
        """
        self.in_flight += 1
        try:
            return await getattr(await self._handle(), method).remote(*arguments)
        except _LOST:
            self.recover()
            raise
        finally:
            self.in_flight -= 1

    def recover(self) -> "asyncio.Task[int]":
        """The task that ends when the actor answers again; started once however many calls were lost."""
        if self.recovery is None:
            say(f"retrieval: actor {self.name} is gone; waiting for it to come back")
            self.recovery = asyncio.get_running_loop().create_task(self.open("sizes"))
            self.recovery.add_done_callback(self._recovered)
        return self.recovery

    async def open(self, verify: Check) -> int:
        """Finds or starts the actor and opens its database, again and again until it answers; its process id."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(_LOST), wait=wait_exponential(multiplier=0.1, max=2.0), reraise=True
        ):
            with attempt:
                again = attempt.retry_state.attempt_number > 1
                try:
                    return int(await (await self._handle(fresh=again)).open.remote(verify))
                except _LOST as error:
                    self.last_loss = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                    raise
        raise AssertionError

    def kill(self) -> None:
        """Ends the actor for good."""
        if self._handles:
            ray.kill(self._handles[-1])

    async def _handle(self, *, fresh: bool = False) -> Any:
        if fresh or not self._handles:
            self._handles.append(await asyncio.to_thread(self._find))
        return self._handles[-1]

    def _find(self) -> Any:
        return ray.remote(DatabaseActor).options(**self._options).remote(*self._arguments)

    def _recovered(self, task: "asyncio.Task[int]") -> None:
        self.recovery = None
        if not task.cancelled() and task.exception() is not None:
            say(f"retrieval: actor {self.name}: {plain_error(task.exception() or AssertionError())}")


class Group:
    """Actors that can stand in for each other."""

    def __init__(self, label: str, members: list[Member]) -> None:
        self.label, self.members = label, members
        self._turn = 0

    @property
    def healthy(self) -> bool:
        """Whether at least one of them is not known to be gone."""
        return any(member.recovery is None for member in self.members)

    async def ask(self, method: str, *arguments: Any) -> Any:
        """The answer of the least busy actor; if it dies over it, another one's, or its own when it is back.

        Raises:
            RemembrandtError: what the actor says, without Ray's wrapping.
        """
        while True:
            alive = [member for member in self.members if member.recovery is None]
            if not alive:
                recoveries = [member.recover() for member in self.members]
                done, _ = await asyncio.wait(recoveries, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                continue
            self._turn += 1
            member = min(alive, key=lambda m: (m.in_flight, (self.members.index(m) + self._turn) % len(self.members)))
            try:
                return await member.ask(method, *arguments)
            except _LOST:
                continue
