"""A tenant's own keys, usage and audit log."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from remembrandt.errors import ConfigError
from remembrandt.serving.accounts import NewKey, Tenants, read_audit
from remembrandt.serving.errors import NotFoundError
from remembrandt.serving.http.services import Admin, Reader, Served
from remembrandt.serving.types import AuditAnswer, KeyAnswer, KeyBody, KeysAnswer, UsageAnswer

router = APIRouter(prefix="/v1", tags=["account"])
KeyId = Annotated[str, Path(max_length=64)]


@router.get("/usage")
async def usage(served: Served, caller: Reader) -> UsageAnswer:
    """What this tenant uses, and may use."""
    tenant = await asyncio.to_thread(Tenants(served.accounts).find, caller.tenant_id)
    images = await asyncio.to_thread(served.quotas.used_today, caller.tenant_id)
    return UsageAnswer(
        tenant=tenant.name,
        rows=tenant.used_rows,
        bytes=tenant.used_bytes,
        images_today=images,
        limits=tenant.limits.model_dump(),
    )


@router.get("/keys")
async def list_keys(served: Served, caller: Admin) -> KeysAnswer:
    """Keys of this tenant, without their secrets."""
    found = await asyncio.to_thread(served.keys.all, caller.tenant_id)
    return KeysAnswer(
        data=[
            KeyAnswer(
                id=key.id,
                label=key.label,
                scopes=list(key.scopes),
                created_at=key.created_at.isoformat(),
                expires_at=None if key.expires_at is None else key.expires_at.isoformat(),
                revoked=key.revoked,
            )
            for key in found
        ]
    )


@router.post("/keys", status_code=201)
async def create_key(body: KeyBody, served: Served, caller: Admin) -> KeyAnswer:
    """A new key; its secret is shown this once."""
    made = await asyncio.to_thread(served.keys.create, caller.tenant_id, body.scopes, body.label, body.days)
    await served.audit(caller, "key.create", made.id, scopes=list(made.scopes))
    return _made(made, body.label)


@router.post("/keys/{key}/rotate", status_code=201)
async def rotate_key(key: KeyId, served: Served, caller: Admin) -> KeyAnswer:
    """A new key with the same scopes; the old one ends within a day."""
    try:
        made = await asyncio.to_thread(served.keys.rotate, caller.tenant_id, key)
    except ConfigError:
        raise NotFoundError(f"there is no key '{key}'") from None
    await served.audit(caller, "key.rotate", key, new=made.id)
    return _made(made)


@router.delete("/keys/{key}", status_code=204)
async def revoke_key(key: KeyId, served: Served, caller: Admin) -> Response:
    """Ends a key; replicas that have just seen it believe it for three seconds more."""
    try:
        await asyncio.to_thread(served.keys.revoke, caller.tenant_id, key)
    except ConfigError:
        raise NotFoundError(f"there is no key '{key}'") from None
    await served.audit(caller, "key.revoke", key)
    return Response(status_code=204)


@router.get("/audit")
async def audit_log(served: Served, caller: Admin, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> AuditAnswer:
    """What was changed, and by which key; newest first."""
    events = await asyncio.to_thread(read_audit, served.accounts, caller.tenant_id, limit)
    return AuditAnswer(
        data=[
            {
                "at": event.at.isoformat(),
                "key": event.key_id,
                "action": event.action,
                "target": event.target,
                "request_id": event.request_id,
                "details": event.details,
            }
            for event in events
        ]
    )


def _made(made: NewKey, label: str = "") -> KeyAnswer:
    return KeyAnswer(
        id=made.id,
        label=label,
        scopes=list(made.scopes),
        expires_at=None if made.expires_at is None else made.expires_at.isoformat(),
        key=made.secret,
    )
