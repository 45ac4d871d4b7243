"""A request's lease is given back whatever becomes of the request."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from remembrandt.serving.accounts import Accounts, Keys, Limits, Principal, Quotas, Tenants
from remembrandt.serving.errors import TooManyRequestsError
from remembrandt.serving.http.leases import leased


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    opened = Accounts(f"sqlite:///{tmp_path}/accounts.db")
    yield opened
    opened.close()


@pytest.fixture
def principal(accounts: Accounts) -> Principal:
    tenant = Tenants(accounts).create("alice", Limits(max_concurrent=1, images_per_day=10))
    found = Keys(accounts).verify(Keys(accounts).create(tenant.id).secret)
    assert found is not None
    return found


def used(accounts: Accounts, principal: Principal) -> tuple[int, int]:
    """Images of the day, and requests under way."""
    with accounts.statements() as connection:
        under_way = connection.scalar(text("SELECT count(*) FROM leases"))
    return Quotas(accounts).used_today(principal.tenant_id), int(under_way or 0)


def test_it_is_given_back_once_and_keeps_what_was_painted(accounts: Accounts, principal: Principal) -> None:
    async def request() -> None:
        async with leased(Quotas(accounts), principal, 4, 60) as lease:
            assert (await lease.taken()).images == 4
            assert used(accounts, principal) == (4, 1)
            await lease.give_back(painted=3)
            assert used(accounts, principal) == (3, 0)

    asyncio.run(request())
    assert used(accounts, principal) == (3, 0)


def test_a_failure_before_it_is_asked_for_gives_it_back(accounts: Accounts, principal: Principal) -> None:
    async def request() -> None:
        async with leased(Quotas(accounts), principal, 4, 60):
            raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(request())
    assert used(accounts, principal) == (0, 0)


def test_one_too_many_is_refused_and_takes_nothing_away(accounts: Accounts, principal: Principal) -> None:
    quotas = Quotas(accounts)
    first = quotas.take(principal, 1, 60)

    async def request() -> None:
        async with leased(quotas, principal, 1, 60) as lease:
            await lease.taken()

    with pytest.raises(TooManyRequestsError, match="under way"):
        asyncio.run(request())
    assert used(accounts, principal) == (1, 1)
    quotas.give_back(first, painted=1)
    asyncio.run(request())
    assert used(accounts, principal) == (1, 0)


def test_a_client_that_leaves_while_it_is_being_taken_holds_nothing(accounts: Accounts, principal: Principal) -> None:
    async def request() -> None:
        async with leased(Quotas(accounts), principal, 4, 60) as lease:
            await lease.taken()
            await asyncio.sleep(60)

    async def leave() -> None:
        with accounts.statements():  # nobody else writes meanwhile: the lease has to wait
            task = asyncio.create_task(request())
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.sleep(0.1)
            assert not task.done()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)

    asyncio.run(leave())
    assert used(accounts, principal) == (0, 0)
