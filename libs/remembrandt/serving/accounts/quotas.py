"""Quotas, exact whoever writes at the same time: each is one conditional update, or stands behind a row's lock."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import CursorResult, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.orm import Session

from remembrandt.serving.accounts.keys import Principal
from remembrandt.serving.accounts.sql import Accounts, new_id, now, seconds
from remembrandt.serving.accounts.tables import LeaseRow, TenantRow, UsageRow
from remembrandt.serving.errors import TooManyRequestsError

_DAY_SECONDS = 86_400


@dataclass
class Spent:
    """A request that was let in. `keep` says how many of its images came to be; the others are given back."""

    images: int
    kept: int = 0

    def keep(self, images: int) -> None:
        """That many were painted."""
        self.kept = min(self.images, images)


class Quotas:
    """What a tenant may still use."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    @contextmanager
    def images(self, principal: Principal, images: int, lease_seconds: float) -> Iterator[Spent]:
        """Takes images of the day and one of the concurrent requests; gives back what was not used.

        Raises:
            TooManyRequestsError: the day's images are used up, or too many requests are under way.
        """
        day, lease = now().date().isoformat(), new_id("ls")
        with self._accounts.write() as session:
            _take_lease(session, principal, lease, lease_seconds)
            _take_images(session, principal, day, images)
        spent = Spent(images)
        try:
            yield spent
        finally:
            with self._accounts.write() as session:
                ended = (LeaseRow.tenant_id == principal.tenant_id) & (LeaseRow.expires_at <= seconds())
                session.execute(delete(LeaseRow).where((LeaseRow.id == lease) | ended))
                if spent.kept < images:
                    given_back = UsageRow.images - (images - spent.kept)
                    own = (UsageRow.tenant_id == principal.tenant_id, UsageRow.day == day)
                    session.execute(update(UsageRow).where(*own).values(images=given_back))

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


def _take_lease(session: Session, principal: Principal, lease: str, lease_seconds: float) -> None:
    if session.get_bind().dialect.name == "postgresql":  # on SQLite, one writes at a time
        session.execute(select(TenantRow.id).where(TenantRow.id == principal.tenant_id).with_for_update())
    own = (LeaseRow.tenant_id == principal.tenant_id, LeaseRow.expires_at > seconds())
    open_now = session.scalar(select(func.count()).select_from(LeaseRow).where(*own)) or 0
    if open_now >= principal.limits.max_concurrent:
        raise TooManyRequestsError(
            f"{open_now} requests of this tenant are under way and {principal.limits.max_concurrent} are allowed: "
            "wait for one to end",
            retry_after=1,
        )
    until = seconds() + lease_seconds
    session.execute(insert(LeaseRow).values(id=lease, tenant_id=principal.tenant_id, expires_at=until))


def _take_images(session: Session, principal: Principal, day: str, images: int) -> None:
    limit = principal.limits.images_per_day
    insert_or = insert_sqlite if session.get_bind().dialect.name == "sqlite" else insert_postgresql
    first = insert_or(UsageRow).values(tenant_id=principal.tenant_id, day=day, images=images)
    taken = first.on_conflict_do_update(
        index_elements=["tenant_id", "day"],
        set_={"images": UsageRow.images + images},
        where=UsageRow.images + images <= limit,
    ).returning(UsageRow.images)
    if images > limit or session.scalar(taken) is None:
        left = _DAY_SECONDS - int(seconds()) % _DAY_SECONDS
        raise TooManyRequestsError(
            f"{limit:,} images a day are allowed, and {images} more would be too many: "
            "ask for fewer, or wait for the next day (UTC)",
            retry_after=left,
        )
