"""API keys: made once, kept as hashes, looked up in constant time."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, get_args

from sqlalchemy import select

from remembrandt.errors import ConfigError
from remembrandt.serving.accounts.sql import Accounts, as_utc, new_id, now
from remembrandt.serving.accounts.tables import KeyRow, TenantRow
from remembrandt.serving.accounts.tenants import Limits, limits_of

Scope = Literal["read", "generate", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_PREFIX = "rmb"
# Compared when there is no such key, so that an unknown id takes as long as a wrong secret.
_NOBODY = hashlib.sha256(b"nobody").hexdigest()


@dataclass(frozen=True)
class Principal:
    """Who a request comes from."""

    tenant_id: str
    tenant_name: str
    key_id: str
    scopes: frozenset[str]
    limits: Limits = field(default_factory=Limits)

    def may(self, scope: Scope) -> bool:
        """Whether its key has a scope; `admin` has all."""
        return scope in self.scopes or "admin" in self.scopes


@dataclass(frozen=True)
class NewKey:
    """A key that was made; `secret` is shown this once."""

    id: str
    secret: str
    scopes: tuple[str, ...]
    expires_at: datetime | None


@dataclass(frozen=True)
class KnownKey:
    """What is kept of a key."""

    id: str
    label: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked: bool


class Keys:
    """Makes, checks, rotates and revokes keys. A key is `rmb_<id>_<secret>`, the secret 256 random bits."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def create(
        self, tenant_id: str, scopes: Sequence[str] = SCOPES[:3], label: str = "", days: float | None = None
    ) -> NewKey:
        """A new key.

        Args:
            days: until it expires; None: never.

        Raises:
            ConfigError: an unknown scope, or none.
        """
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise ConfigError(f"scopes {', '.join(unknown) or '(none)'}: choose from {', '.join(SCOPES)}")
        key_id, secret = new_id("k").removeprefix("k_"), secrets.token_urlsafe(32)
        expires_at = None if days is None else now() + timedelta(days=days)
        row = KeyRow(
            id=key_id,
            tenant_id=tenant_id,
            label=label[:64],
            secret_sha256=_digest(secret),
            scopes=",".join(dict.fromkeys(scopes)),
            created_at=now(),
            expires_at=expires_at,
        )
        with self._accounts.write() as session:
            session.add(row)
        return NewKey(key_id, f"{_PREFIX}_{key_id}_{secret}", tuple(dict.fromkeys(scopes)), expires_at)

    def verify(self, key: str) -> Principal | None:
        """Who a key belongs to; None if it is unknown, wrong, expired or revoked, or its tenant is shut out."""
        prefix, _, rest = key.partition("_")
        key_id, _, secret = rest.partition("_")
        with self._accounts.read() as session:
            found = session.execute(
                select(KeyRow, TenantRow).join(TenantRow, TenantRow.id == KeyRow.tenant_id).where(KeyRow.id == key_id)
            ).one_or_none()
        known = _NOBODY if found is None else found[0].secret_sha256
        right = hmac.compare_digest(_digest(secret), known)
        if found is None or not right or prefix != _PREFIX:
            return None
        row, tenant = found
        expired = row.expires_at is not None and as_utc(row.expires_at) <= now()
        if expired or row.revoked_at is not None or tenant.disabled_at is not None:
            return None
        return Principal(tenant.id, tenant.name, row.id, frozenset(row.scopes.split(",")), limits_of(tenant))

    def rotate(self, tenant_id: str, key_id: str, grace_days: float = 1.0) -> NewKey:
        """A new key with the same scopes and label; the old one lives for `grace_days` more at most.

        Raises:
            ConfigError: no such key, or one that is not valid any more.
        """
        with self._accounts.write() as session:
            row = session.get(KeyRow, key_id)
            if row is None or row.tenant_id != tenant_id or row.revoked_at is not None:
                raise _no_key(key_id)
            last = now() + timedelta(days=grace_days)
            row.expires_at = last if row.expires_at is None else min(as_utc(row.expires_at), last)
            scopes, label = row.scopes.split(","), row.label
        return self.create(tenant_id, scopes, label)

    def revoke(self, tenant_id: str, key_id: str) -> None:
        """Ends a key at once.

        Raises:
            ConfigError: no such key.
        """
        with self._accounts.write() as session:
            row = session.get(KeyRow, key_id)
            if row is None or row.tenant_id != tenant_id:
                raise _no_key(key_id)
            row.revoked_at = row.revoked_at or now()

    def all(self, tenant_id: str) -> list[KnownKey]:
        """A tenant's keys, oldest first."""
        with self._accounts.read() as session:
            rows = session.scalars(select(KeyRow).where(KeyRow.tenant_id == tenant_id).order_by(KeyRow.created_at))
            return [
                KnownKey(
                    row.id,
                    row.label,
                    tuple(row.scopes.split(",")),
                    as_utc(row.created_at),
                    None if row.expires_at is None else as_utc(row.expires_at),
                    row.revoked_at is not None,
                )
                for row in rows
            ]


def _digest(secret: str) -> str:
    """The secret has 256 random bits, so a fast hash is enough: there is no dictionary to try."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _no_key(key_id: str) -> ConfigError:
    return ConfigError(f"there is no key '{key_id}': list keys first")
