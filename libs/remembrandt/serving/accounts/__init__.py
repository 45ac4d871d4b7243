"""Who may do what, and how much of it: tenants, API keys, databases, quotas, rates and the audit log, in SQL."""

from remembrandt.serving.accounts.audit import AuditEvent, audit, read_audit
from remembrandt.serving.accounts.catalog import DatabaseEntry, JobEntry, TenantDatabases
from remembrandt.serving.accounts.keys import Keys, NewKey, Principal, Scope
from remembrandt.serving.accounts.quotas import Lease, Quotas
from remembrandt.serving.accounts.rates import RateLimits
from remembrandt.serving.accounts.sql import Accounts
from remembrandt.serving.accounts.tenants import Limits, Tenant, Tenants

__all__ = [
    "Accounts",
    "AuditEvent",
    "DatabaseEntry",
    "JobEntry",
    "Keys",
    "Lease",
    "Limits",
    "NewKey",
    "Principal",
    "Quotas",
    "RateLimits",
    "Scope",
    "Tenant",
    "TenantDatabases",
    "Tenants",
    "audit",
    "read_audit",
]
