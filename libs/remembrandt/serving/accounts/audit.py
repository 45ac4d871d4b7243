"""The audit log: what changed something, and by whom."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from remembrandt.serving.accounts.keys import Principal
from remembrandt.serving.accounts.sql import Accounts, as_utc, now
from remembrandt.serving.accounts.tables import AuditRow


@dataclass(frozen=True)
class AuditEvent:
    """One entry."""

    at: datetime
    tenant_id: str | None
    key_id: str | None
    action: str
    target: str
    request_id: str
    details: dict[str, Any]


def audit(
    accounts: Accounts,
    action: str,
    target: str = "",
    *,
    principal: Principal | None = None,
    request_id: str = "",
    **details: Any,
) -> None:
    """Writes an entry; `principal` None: the person at the command line."""
    with accounts.write() as session:
        session.add(
            AuditRow(
                at=now(),
                tenant_id=None if principal is None else principal.tenant_id,
                key_id=None if principal is None else principal.key_id,
                action=action,
                target=target[:256],
                request_id=request_id[:64],
                details=details,
            )
        )


def read_audit(accounts: Accounts, tenant_id: str | None = None, limit: int = 100) -> list[AuditEvent]:
    """The newest entries, newest first."""
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    if tenant_id is not None:
        query = query.where(AuditRow.tenant_id == tenant_id)
    with accounts.read() as session:
        return [
            AuditEvent(as_utc(r.at), r.tenant_id, r.key_id, r.action, r.target, r.request_id, r.details)
            for r in session.scalars(query)
        ]
