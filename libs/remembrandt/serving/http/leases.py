"""A request's quota, taken and given back beside other work: the accounts are a disk or a network away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from remembrandt.serving.accounts import Lease, Principal, Quotas


class Leasing:
    """A lease that is being taken. Use `leased`."""

    def __init__(self, quotas: Quotas, principal: Principal, images: int, seconds: float) -> None:
        self._quotas = quotas
        self._taking = asyncio.ensure_future(asyncio.to_thread(quotas.take, principal, images, seconds))
        self._giving_back: asyncio.Future[None] | None = None

    async def taken(self) -> Lease:
        """The lease.

        Raises:
            TooManyRequestsError: as `Quotas.take`.
        """
        return await asyncio.shield(self._taking)  # a thread cannot be called back: it goes on where the client leaves

    def give_back(self, painted: int = 0) -> "asyncio.Future[None]":
        """Begins to end it, beside other work; a second time changes nothing."""
        if self._giving_back is None:
            self._giving_back = asyncio.ensure_future(self._give_back(painted))
        return self._giving_back

    async def _give_back(self, painted: int) -> None:
        await asyncio.wait([self._taking])
        if self._taking.exception() is None:
            await asyncio.to_thread(self._quotas.give_back, self._taking.result(), painted)


@asynccontextmanager
async def leased(quotas: Quotas, principal: Principal, images: int, seconds: float) -> AsyncIterator[Leasing]:
    """Begins to take a lease, and gives it back at the end."""
    leasing = Leasing(quotas, principal, images, seconds)
    try:
        yield leasing
    finally:
        await asyncio.shield(leasing.give_back())  # even if the client leaves meanwhile
