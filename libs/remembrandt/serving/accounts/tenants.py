"""Tenants and their limits."""

import re
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from remembrandt.configuration import Config
from remembrandt.errors import ConfigError
from remembrandt.serving.accounts.sql import Accounts, new_id, now
from remembrandt.serving.accounts.tables import TenantRow

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class Limits(Config):
    """What a tenant may use.

    Attributes:
        max_rows, max_bytes: of all its databases together.
        images_per_day: painted, by days of UTC.
        max_concurrent: requests for pictures under way at once, on all replicas together.
        requests_per_minute: of any kind; 0: unlimited.
    """

    max_rows: int = Field(1_000_000, ge=0)
    max_bytes: int = Field(20_000_000_000, ge=0)
    images_per_day: int = Field(5_000, ge=0)
    max_concurrent: int = Field(8, ge=0)
    requests_per_minute: int = Field(600, ge=0)


@dataclass(frozen=True)
class Tenant:
    """A tenant."""

    id: str
    name: str
    limits: Limits
    used_rows: int = 0
    used_bytes: int = 0
    disabled: bool = False


class Tenants:
    """Makes, changes and lists tenants."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def create(self, name: str, limits: Limits | None = None) -> Tenant:
        """A new tenant.

        Raises:
            ConfigError: not a name, or taken.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"'{name}' cannot be a tenant's name: use a–z, 0–9, - and _, at most 63 characters")
        values = (limits or Limits()).model_dump()
        row = TenantRow(id=new_id("tn"), name=name, created_at=now(), used_rows=0, used_bytes=0, **values)
        try:
            with self._accounts.write() as session:
                session.add(row)
        except IntegrityError:
            raise ConfigError(f"there is a tenant '{name}' already: choose another name") from None
        return _tenant(row)

    def find(self, name: str) -> Tenant:
        """By name or id.

        Raises:
            ConfigError: no such tenant.
        """
        with self._accounts.read() as session:
            row = session.scalar(select(TenantRow).where((TenantRow.name == name) | (TenantRow.id == name)))
        if row is None:
            raise ConfigError(f"there is no tenant '{name}': see `remembrandt tenants list`")
        return _tenant(row)

    def all(self) -> list[Tenant]:
        """Every tenant, by name."""
        with self._accounts.read() as session:
            return [_tenant(row) for row in session.scalars(select(TenantRow).order_by(TenantRow.name))]

    def change(self, name: str, *, disabled: bool | None = None, **limits: Any) -> Tenant:
        """Sets limits, or shuts a tenant out and lets it in again.

        Raises:
            ConfigError: no such tenant.
        """
        tenant = self.find(name)
        values = Limits.model_validate({**tenant.limits.model_dump(), **limits}).model_dump()
        with self._accounts.write() as session:
            row = session.get_one(TenantRow, tenant.id)
            for field, value in values.items():
                setattr(row, field, value)
            if disabled is not None:
                row.disabled_at = now() if disabled else None
            return _tenant(row)


def limits_of(row: TenantRow) -> Limits:
    """Of a row."""
    return Limits(**{name: getattr(row, name) for name in Limits.model_fields})


def _tenant(row: TenantRow) -> Tenant:
    return Tenant(row.id, row.name, limits_of(row), row.used_rows, row.used_bytes, row.disabled_at is not None)
