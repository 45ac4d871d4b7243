"""Quotas, exact whoever writes at the same time: each is one conditional update, or stands behind a row's lock."""

from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, CursorResult, Table, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.orm import Session

from remembrandt.serving.accounts.keys import Principal
from remembrandt.serving.accounts.sql import Accounts, new_id, now, seconds
from remembrandt.serving.accounts.tables import LeaseRow, TenantRow, UsageRow
from remembrandt.serving.errors import TooManyRequestsError

_DAY_SECONDS = 86_400

# Every picture waits for these. To put a statement together takes SQLAlchemy longer than SQLite takes to do it, so that
# they are put together once.
_LEASES, _TENANTS, _USAGE = (cast(Table, row.__table__) for row in (LeaseRow, TenantRow, UsageRow))
_OWN_LEASES = _LEASES.c.tenant_id == bindparam("tenant")
_UNDER_WAY = select(func.count()).select_from(_LEASES).where(_OWN_LEASES, _LEASES.c.expires_at > bindparam("now"))
_LOCK = select(_TENANTS.c.id).where(_TENANTS.c.id == bindparam("tenant")).with_for_update()
_LET_IN = (
    insert(_LEASES)
    .from_select(
        ["id", "tenant_id", "expires_at"],
        select(
            bindparam("lease", type_=_LEASES.c.id.type),
            bindparam("tenant", type_=_LEASES.c.tenant_id.type),
            bindparam("until", type_=_LEASES.c.expires_at.type),
        ).where(_UNDER_WAY.scalar_subquery() < bindparam("most")),
    )
    .returning(_LEASES.c.id)
)
_END = delete(_LEASES).where(
    (_LEASES.c.id == bindparam("lease")) | (_OWN_LEASES & (_LEASES.c.expires_at <= bindparam("now")))
)
_GIVE_BACK = (
    update(_USAGE)
    .where(_USAGE.c.tenant_id == bindparam("tenant"), _USAGE.c.day == bindparam("of_day"))
    .values(images=_USAGE.c.images - bindparam("left"))
)


def _take_images_by(insert_or: Any) -> Any:
    first = insert_or(_USAGE).values(tenant_id=bindparam("tenant"), day=bindparam("of_day"), images=bindparam("wanted"))
    together = _USAGE.c.images + bindparam("wanted")
    return first.on_conflict_do_update(
        index_elements=["tenant_id", "day"], set_={"images": together}, where=together <= bindparam("limit")
    ).returning(_USAGE.c.images)


_TAKE_IMAGES = {"sqlite": _take_images_by(insert_sqlite), "postgresql": _take_images_by(insert_postgresql)}


@dataclass(frozen=True)
class Lease:
    """A request that was let in: one of the concurrent ones, and images of a day."""

    id: str
    tenant_id: str
    day: str
    images: int


class Quotas:
    """What a tenant may still use."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def take(self, principal: Principal, images: int, lease_seconds: float) -> Lease:
        """Takes images of the day and one of the concurrent requests, until it is given back or has expired.

        Raises:
            TooManyRequestsError: the day's images are used up, or too many requests are under way.
        """
        lease = Lease(new_id("ls"), principal.tenant_id, now().date().isoformat(), images)
        with self._accounts.statements() as connection:
            _take_place(connection, principal, lease, lease_seconds)
            _take_images(connection, principal, lease)
        return lease

    def give_back(self, lease: Lease, painted: int = 0) -> None:
        """Ends a request, and gives back those of its images that were not painted."""
        with self._accounts.statements() as connection:
            connection.execute(_END, {"lease": lease.id, "tenant": lease.tenant_id, "now": seconds()})
            if left := lease.images - painted:
                connection.execute(_GIVE_BACK, {"tenant": lease.tenant_id, "of_day": lease.day, "left": left})

    def used_today(self, tenant_id: str) -> int:
        """Images of this day."""
        with self._accounts.read() as session:
            row = session.get(UsageRow, (tenant_id, now().date().isoformat()))
            return 0 if row is None else row.images

    @staticmethod
    def take_space(session: Session, tenant_id: str, rows: int, size: int) -> bool:
        """Adds to (or, negative, gives back) a tenant's rows and bytes; False, and nothing done, beyond its limits."""
        taken = session.execute(
            update(TenantRow)
            .where(
                TenantRow.id == tenant_id,
                (TenantRow.used_rows + rows <= TenantRow.max_rows) | (rows <= 0),
                (TenantRow.used_bytes + size <= TenantRow.max_bytes) | (size <= 0),
            )
            .values(used_rows=TenantRow.used_rows + rows, used_bytes=TenantRow.used_bytes + size)
        )
        assert isinstance(taken, CursorResult)
        return bool(taken.rowcount == 1)

    @staticmethod
    def settle(session: Session, tenant_id: str, rows: int, size: int) -> None:
        """Adds a difference between what was reserved and what came to be, beyond the limits too: it is there."""
        values = {"used_rows": TenantRow.used_rows + rows, "used_bytes": TenantRow.used_bytes + size}
        session.execute(update(TenantRow).where(TenantRow.id == tenant_id).values(**values))


def _take_place(connection: Connection, principal: Principal, lease: Lease, lease_seconds: float) -> None:
    if connection.dialect.name == "postgresql":  # on SQLite, one writes at a time
        connection.execute(_LOCK, {"tenant": lease.tenant_id})
    at, most = seconds(), principal.limits.max_concurrent
    own = {"tenant": lease.tenant_id, "now": at}
    if connection.scalar(_LET_IN, {**own, "lease": lease.id, "until": at + lease_seconds, "most": most}) is not None:
        return
    under_way = connection.scalar(_UNDER_WAY, own)
    raise TooManyRequestsError(
        f"{under_way} requests of this tenant are under way and {most} are allowed: wait for one to end",
        retry_after=1,
    )


def _take_images(connection: Connection, principal: Principal, lease: Lease) -> None:
    limit, images = principal.limits.images_per_day, lease.images
    values = {"tenant": lease.tenant_id, "of_day": lease.day, "wanted": images, "limit": limit}
    if images > limit or connection.scalar(_TAKE_IMAGES[connection.dialect.name], values) is None:
        left = _DAY_SECONDS - int(seconds()) % _DAY_SECONDS
        raise TooManyRequestsError(
            f"{limit:,} images a day are allowed, and {images} more would be too many: "
            "ask for fewer, or wait for the next day (UTC)",
            retry_after=left,
        )
