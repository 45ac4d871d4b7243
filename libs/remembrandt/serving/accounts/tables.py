"""The tables. Alembic's migrations make them; `tests/serving` holds both together."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Float, ForeignKey, Index, Integer, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_BIG = BigInteger().with_variant(Integer, "sqlite")
_TIME = DateTime(timezone=True)


class Base(DeclarativeBase):
    """Of all tables."""


class TenantRow(Base):
    """A tenant: what it may use, and what it uses.

    `used_rows` and `used_bytes` are moved by conditional updates alone, so that they are exact whoever writes.
    """

    __tablename__ = "tenants"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(_TIME)
    disabled_at: Mapped[datetime | None] = mapped_column(_TIME)
    max_rows: Mapped[int] = mapped_column(_BIG)
    max_bytes: Mapped[int] = mapped_column(_BIG)
    images_per_day: Mapped[int] = mapped_column(_BIG)
    max_concurrent: Mapped[int] = mapped_column(Integer)
    requests_per_minute: Mapped[int] = mapped_column(Integer)
    used_rows: Mapped[int] = mapped_column(_BIG, default=0)
    used_bytes: Mapped[int] = mapped_column(_BIG, default=0)


class KeyRow(Base):
    """An API key. The secret itself is nowhere."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    label: Mapped[str] = mapped_column(String(64), default="")
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(_TIME)
    expires_at: Mapped[datetime | None] = mapped_column(_TIME)
    revoked_at: Mapped[datetime | None] = mapped_column(_TIME)


class DatabaseRow(Base):
    """A database of a tenant: one of its own, or a view of a shared one."""

    __tablename__ = "databases"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(64))
    uri: Mapped[str] = mapped_column(String(1024))
    view_of: Mapped[str | None] = mapped_column(String(64))
    where: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    rows: Mapped[int] = mapped_column(_BIG, default=0)
    bytes: Mapped[int] = mapped_column(_BIG, default=0)
    created_at: Mapped[datetime] = mapped_column(_TIME)


class JobRow(Base):
    """A build of a tenant's database. `reserved_*` is what it holds of the quota until it has ended."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    database_id: Mapped[str] = mapped_column(String(32), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(String(2000), default="")
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    stage: Mapped[str] = mapped_column(String(64), default="")
    done: Mapped[int] = mapped_column(_BIG, default=0)
    total: Mapped[int | None] = mapped_column(_BIG)
    rate: Mapped[float] = mapped_column(Float, default=0.0)
    version: Mapped[str | None] = mapped_column(String(64))
    reserved_rows: Mapped[int] = mapped_column(_BIG, default=0)
    reserved_bytes: Mapped[int] = mapped_column(_BIG, default=0)
    created_at: Mapped[datetime] = mapped_column(_TIME)
    finished_at: Mapped[datetime | None] = mapped_column(_TIME)


class UsageRow(Base):
    """Images of a tenant on a day (UTC)."""

    __tablename__ = "usage"
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    images: Mapped[int] = mapped_column(_BIG, default=0)


class LeaseRow(Base):
    """A request that is under way. One whose process died ends by itself at `expires_at` (seconds since 1970)."""

    __tablename__ = "leases"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    expires_at: Mapped[float] = mapped_column(Float)


class CounterRow(Base):
    """A counter of the rate limits; `expires_at` in seconds since 1970."""

    __tablename__ = "counters"
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[int] = mapped_column(_BIG)
    expires_at: Mapped[float] = mapped_column(Float)


class AuditRow(Base):
    """What was done, by whom."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("audit_by_tenant", "tenant_id", "id"),)
    id: Mapped[int] = mapped_column(_BIG, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(_TIME)
    tenant_id: Mapped[str | None] = mapped_column(String(32))
    key_id: Mapped[str | None] = mapped_column(String(32))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(256), default="")
    request_id: Mapped[str] = mapped_column(String(64), default="")
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class SecretRow(Base):
    """Keys that all replicas sign URLs with."""

    __tablename__ = "secrets"
    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[str] = mapped_column(String(128))
