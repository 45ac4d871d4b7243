"""What clients send is looked at in threads of its own: meanwhile keys are checked, and health is told."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from remembrandt.serving.errors import TooManyRequestsError

ResultT = TypeVar("ResultT")
_RETRY_SECONDS = 5


class Intake:
    """Runs work of tenants in a few threads.

    Args:
        name: of the threads.
        most: that one tenant has under way at once, so that others come to their turn; None: any number.
    """

    def __init__(self, name: str, threads: int, most: int | None = None) -> None:
        self._threads = ThreadPoolExecutor(threads, name)
        self._most = most
        self._under_way: Counter[str] = Counter()
        self._lock = threading.Lock()

    async def run(self, tenant_id: str, work: Callable[..., ResultT], *arguments: object) -> ResultT:
        """The result of `work`.

        Raises:
            TooManyRequestsError: the tenant has as much under way as it may.
        """
        with self._lock:
            if self._most is not None and self._under_way[tenant_id] >= self._most:
                raise TooManyRequestsError(
                    f"{self._most} uploads of this tenant are being looked at: wait for one to end", _RETRY_SECONDS
                )
            self._under_way[tenant_id] += 1
        running = self._threads.submit(work, *arguments)
        # Its place is free when the thread is, even if the client has left before.
        running.add_done_callback(lambda _: self._ended(tenant_id))
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Ends the threads after what they do now."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, tenant_id: str) -> None:
        with self._lock:
            self._under_way[tenant_id] -= 1
            self._under_way += Counter()  # forgets those that have nothing under way
