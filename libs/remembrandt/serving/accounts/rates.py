"""Rate limits by the library `limits`; its counters lie with the accounts: replicas share them, restarts keep them."""

import time
from typing import Any, cast

from limits import RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy import BindParameter, Table, bindparam, case, delete, select, update
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from remembrandt.errors import ServiceError
from remembrandt.serving.accounts.keys import Principal
from remembrandt.serving.accounts.sql import Accounts, seconds
from remembrandt.serving.accounts.tables import CounterRow
from remembrandt.serving.errors import TooManyRequestsError

# Put together once, for every request waits for it.
_COUNTERS = cast(Table, CounterRow.__table__)


def _count_by(insert_or: Any) -> Any:
    """Adds to a counter, which starts anew when it has expired; one statement, so that no request is lost."""
    amount: BindParameter[int] = bindparam("amount")
    until: BindParameter[float] = bindparam("until")
    fresh = insert_or(_COUNTERS).values(key=bindparam("counter"), value=amount, expires_at=until)
    live = _COUNTERS.c.expires_at > bindparam("now")
    return fresh.on_conflict_do_update(
        index_elements=["key"],
        set_={
            "value": case((live, _COUNTERS.c.value + amount), else_=amount),
            "expires_at": case((live, _COUNTERS.c.expires_at), else_=until),
        },
    ).returning(_COUNTERS.c.value)


_COUNT = {"sqlite": _count_by(insert_sqlite), "postgresql": _count_by(insert_postgresql)}


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
        """Adds to a counter, and returns what it is then."""
        at = seconds()
        values = {"counter": key[:255], "amount": amount, "now": at, "until": at + expiry}
        with self._accounts.statements() as connection:
            return int(connection.execute(_COUNT[connection.dialect.name], values).scalar_one())

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
