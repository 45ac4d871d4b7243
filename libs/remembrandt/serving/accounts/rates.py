"""Rate limits by the library `limits`; its counters lie with the accounts: replicas share them, restarts keep them."""

import time
from typing import Any

from limits import RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy import case, delete, select, update
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from remembrandt.errors import ServiceError
from remembrandt.serving.accounts.keys import Principal
from remembrandt.serving.accounts.sql import Accounts, seconds
from remembrandt.serving.accounts.tables import CounterRow
from remembrandt.serving.errors import TooManyRequestsError


class RateLimits:
    """Requests a minute of each tenant."""

    def __init__(self, accounts: Accounts) -> None:
        self._limiter = FixedWindowRateLimiter(SqlStorage(accounts))

    def check(self, principal: Principal) -> None:
        """Counts a request.

        Raises:
            TooManyRequestsError: there were too many within this minute.
        """
        allowed = principal.limits.requests_per_minute
        if allowed == 0:
            return
        item = RateLimitItemPerMinute(allowed)
        if not self._limiter.hit(item, principal.tenant_id):
            reset = self._limiter.get_window_stats(item, principal.tenant_id).reset_time
            raise TooManyRequestsError(
                f"{allowed:,} requests a minute are allowed: slow down",
                retry_after=max(1, int(reset - time.time()) + 1),
            )


class SqlStorage(Storage):
    """Counters of `limits` in a table."""

    def __init__(self, accounts: Accounts) -> None:
        super().__init__()
        self._accounts = accounts

    @property
    def base_exceptions(self) -> type[Exception]:
        """What a failure of this storage is."""
        return ServiceError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Adds to a counter, which starts anew when it has expired; one statement, so that none is lost."""
        at = seconds()
        with self._accounts.write() as session:
            insert: Any = insert_sqlite if session.get_bind().dialect.name == "sqlite" else insert_postgresql
            fresh = insert(CounterRow).values(key=key[:255], value=amount, expires_at=at + expiry)
            live = CounterRow.expires_at > at
            added = fresh.on_conflict_do_update(
                index_elements=["key"],
                set_={
                    "value": _either(live, CounterRow.value + amount, amount),
                    "expires_at": _either(live, CounterRow.expires_at, at + expiry),
                },
            ).returning(CounterRow.value)
            return int(session.execute(added).scalar_one())

    def get(self, key: str) -> int:
        """A counter's value; 0 when it has expired."""
        with self._accounts.read() as session:
            row = session.get(CounterRow, key[:255])
            return 0 if row is None or row.expires_at <= seconds() else row.value

    def get_expiry(self, key: str) -> float:
        """When it expires."""
        with self._accounts.read() as session:
            row = session.get(CounterRow, key[:255])
            return seconds() if row is None else row.expires_at

    def check(self) -> bool:
        """Whether the storage answers."""
        with self._accounts.read() as session:
            session.execute(select(1))
        return True

    def reset(self) -> int:
        """Forgets what has expired; returns how many."""
        with self._accounts.write() as session:
            return int(getattr(session.execute(delete(CounterRow)), "rowcount", 0))

    def clear(self, key: str) -> None:
        """Sets a counter to 0."""
        with self._accounts.write() as session:
            session.execute(update(CounterRow).where(CounterRow.key == key[:255]).values(value=0))


def _either(condition: Any, yes: Any, no: Any) -> Any:
    return case((condition, yes), else_=no)
