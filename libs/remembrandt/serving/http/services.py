"""What routes share: accounts, backend, signer, and who is asking."""

import asyncio
import base64
import binascii
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Request

from remembrandt.errors import ConfigError, RemembrandtError
from remembrandt.generation.requests import DatabaseRef
from remembrandt.serving.accounts import (
    Accounts,
    DatabaseEntry,
    Keys,
    Principal,
    Quotas,
    RateLimits,
    Scope,
    TenantDatabases,
    audit,
)
from remembrandt.serving.backend import Backend
from remembrandt.serving.config import ServiceConfig
from remembrandt.serving.errors import NotFoundError
from remembrandt.serving.http.intake import Intake
from remembrandt.serving.models import ServedModel, served_models
from remembrandt.serving.provenance import Provenance
from remembrandt.serving.signing import Signer
from remembrandt.serving.telemetry import RequestParts

KeyT = TypeVar("KeyT")
ResultT = TypeVar("ResultT")
_KEY_SECONDS = 3.0
_DATABASE_SECONDS = 1.0
_KNOWN = 4096


class NotAllowedError(RemembrandtError):
    """No key, or none that is valid: 401. A valid one without the scope: 403."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Services:
    """One replica's. Blocking work goes to threads."""

    def __init__(self, config: ServiceConfig, backend: Backend, accounts: Accounts) -> None:
        self.config, self.backend, self.accounts = config, backend, accounts
        self.keys, self.databases = Keys(accounts), TenantDatabases(accounts)
        self.quotas, self.rates = Quotas(accounts), RateLimits(accounts)
        self.uploads = Intake("uploads", config.uploads.threads, config.uploads.max_concurrent)
        self.pictures = Intake("pictures", config.uploads.threads)
        self._principals: RecentlyFound[bytes, Principal] = RecentlyFound(_KEY_SECONDS)
        self._entries: RecentlyFound[tuple[str, str, int], DatabaseEntry] = RecentlyFound(_DATABASE_SECONDS)

    def close(self) -> None:
        """Ends threads."""
        self.uploads.close()
        self.pictures.close()

    @cached_property
    def signer(self) -> Signer:
        """Of URLs."""
        return Signer(self.accounts.secret("urls"), self.config.image_days * 86_400)

    @cached_property
    def provenance(self) -> Provenance:
        """Of finished pictures."""
        return Provenance(self.config.provenance)

    @property
    def base_url(self) -> str:
        """In front of URLs in answers; empty: they are relative to the service."""
        return (self.config.public_url or "").rstrip("/")

    @cached_property
    def models(self) -> Mapping[str, ServedModel]:
        """What each model can do."""
        return served_models(self.config)

    async def principal(self, key: str) -> Principal | None:
        """Who a key belongs to. What was found is believed for three seconds; a revoked key lives no longer."""
        known = hashlib.sha256(key.encode()).digest()
        return await self._principals.get(known, lambda: self.keys.verify(key))

    async def database(self, tenant_id: str, name: str | None) -> DatabaseEntry:
        """A database that a tenant may read, by name or id; None: the default one.

        What was found is believed for a second, unless this replica changes a database.

        Raises:
            NotFoundError: there is none that it may see.
        """
        shared = self.config.shared_databases
        if name is None:
            if not shared:
                raise NotFoundError("name a database: this service has none that everybody may read")
            name = next(iter(shared))
        found = await self._entries.get((tenant_id, name, self.databases.changes), lambda: self._entry(tenant_id, name))
        if found is None:
            raise NotFoundError(f"there is no database '{name}'")
        return found

    def own_entries(self, tenant_id: str) -> list[tuple[DatabaseEntry, bool]]:
        """A tenant's own databases, and whether each can be read: a view cannot, once what it is of is gone."""
        found = []
        for entry in self.databases.all(tenant_id):
            seen = self._seen(tenant_id, entry, ())
            found.append((entry if seen is None else seen, seen is not None))
        return found

    def _entry(self, tenant_id: str, name: str) -> DatabaseEntry | None:
        own = self.databases.find(tenant_id, name)
        return self._shared_entry(name) if own is None else self._seen(tenant_id, own, ())

    def _shared_entry(self, name: str) -> DatabaseEntry | None:
        own = self.config.shared_databases.get(name)
        return None if own is None else shared_entry(name, own.uri, own.where)

    def _seen(self, tenant_id: str, entry: DatabaseEntry, views: tuple[str, ...]) -> DatabaseEntry | None:
        """An entry as it may be read now: a view shows what it is of as that is now, and no more of it.

        Args:
            views: by which it was reached.

        Returns:
            None for a view of what is gone.
        """
        if entry.view_of is None:
            return entry
        views = (*views, entry.id)
        base = self.databases.find(tenant_id, entry.view_of)
        # A name may have passed to another database since, and that is not what the view is of.
        if base is not None and base.id not in views and (base.view_of is not None or base.uri == entry.uri):
            base = self._seen(tenant_id, base, views)
        else:
            base = self._shared_entry(entry.view_of)
        return None if base is None else replace(entry, uri=base.uri, where=ref_of(base, entry.where).where)

    async def check_rows(self, entry: DatabaseEntry, ids: Sequence[int]) -> None:
        """Rows outside a view do not exist for whoever sees the view.

        Raises:
            SearchError: one of them is outside.
        """
        if entry.where and ids:
            await self.backend.retrieval.rows(ref_of(entry), ids)

    def shared_entries(self) -> list[DatabaseEntry]:
        """Databases that every tenant may read."""
        return [shared_entry(name, own.uri, own.where) for name, own in self.config.shared_databases.items()]

    async def audit(self, caller: "Caller", action: str, target: str = "", **details: Any) -> None:
        """Puts on record what somebody did."""
        await asyncio.to_thread(
            audit,
            self.accounts,
            action,
            target,
            principal=caller.principal,
            request_id=caller.request_id,
            **details,
        )


class RecentlyFound(Generic[KeyT, ResultT]):
    """What was found in the last seconds; what was not found is looked for again."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._found: OrderedDict[KeyT, tuple[float, ResultT]] = OrderedDict()

    async def get(self, key: KeyT, find: Callable[[], ResultT | None]) -> ResultT | None:
        """The value of a key; `find` runs in a thread."""
        if (known := self._found.get(key)) is not None and time.monotonic() - known[0] < self._seconds:
            return known[1]
        found = await asyncio.to_thread(find)
        self._found.pop(key, None)
        if found is not None:
            self._found[key] = (time.monotonic(), found)
            if len(self._found) > _KNOWN:
                self._found.popitem(last=False)
        return found


@dataclass(frozen=True)
class Caller:
    """Who is asking, and by which request."""

    principal: Principal
    request_id: str
    parts: RequestParts

    @property
    def tenant_id(self) -> str:
        """Of the tenant."""
        return self.principal.tenant_id


def shared_entry(name: str, uri: str, where: Mapping[str, tuple[str, ...]]) -> DatabaseEntry:
    """A shared database, as if it were a tenant's."""
    return DatabaseEntry(id=name, name=name, uri=uri, where=where, shared=True)


def ref_of(
    entry: DatabaseEntry,
    filters: Mapping[str, Sequence[str]] | None = None,
    without: tuple[int, ...] = (),
    version: str | None = None,
) -> DatabaseRef:
    """Rows of a database: those of its view that also pass the filters."""
    where = {column: tuple(values) for column, values in entry.where.items()}
    for column, values in (filters or {}).items():
        allowed = where.get(column)
        where[column] = tuple(values) if allowed is None else tuple(v for v in values if v in allowed)
    return DatabaseRef(uri=entry.uri, version=version, where=where, without=without)


async def services(request: Request) -> Services:
    """Of the application. FastAPI sends what is not `async` to a thread."""
    found: Services = request.app.state.services
    return found


async def no_nul(request: Request) -> None:
    """Nothing is named by a text with a NUL in it, and PostgreSQL takes none.

    Raises:
        NotFoundError: the path has one.
        ConfigError: the query has one.
    """
    if any("\0" in str(value) for value in request.path_params.values()):
        raise NotFoundError("there is nothing of this name")
    for name, value in request.query_params.multi_items():
        if "\0" in name or "\0" in value:
            raise ConfigError("a value of the query has a NUL character: leave it out")


Served = Annotated[Services, Depends(services)]


def key_of(request: Request) -> str | None:
    """The key: `Authorization: Bearer …` as OpenAI's clients send it, or Basic, as a URL with a password gives it."""
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip() or None
    if kind.lower() == "basic":
        try:
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return None
        found = password or user
        return found if found and "\0" not in found else None
    return None


def caller_with(scope: Scope) -> Callable[..., Any]:
    """A dependency: a caller whose key has a scope, within its rate."""

    async def caller(request: Request, served: Served) -> Caller:
        key = key_of(request)
        principal = None if key is None else await served.principal(key)
        if principal is None:
            raise NotAllowedError("this needs a valid API key: send `Authorization: Bearer <key>`", 401)
        request.state.tenant = principal.tenant_name
        if not principal.may(scope):
            raise NotAllowedError(f"this key does not have the scope '{scope}'", 403)
        if principal.limits.requests_per_minute:
            await asyncio.to_thread(served.rates.check, principal)
        return Caller(principal, request.state.request_id, request.state.parts)

    return caller


Reader = Annotated[Caller, Depends(caller_with("read"))]
Maker = Annotated[Caller, Depends(caller_with("generate"))]
Writer = Annotated[Caller, Depends(caller_with("write"))]
Admin = Annotated[Caller, Depends(caller_with("admin"))]


async def tenant_of_picture(request: Request, served: Services) -> str:
    """Whose picture is asked for: said by a signature, or by a key.

    Raises:
        NotAllowedError: by neither.
    """
    query = dict(request.query_params)
    if served.signer.is_valid(request.url.path, query):
        return query["tenant"]
    caller: Caller = await caller_with("read")(request, served)
    return caller.tenant_id
