"""Which databases a tenant has, and the builds of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from remembrandt.serving.accounts.quotas import Quotas
from remembrandt.serving.accounts.sql import Accounts, as_utc, new_id, now
from remembrandt.serving.accounts.tables import DatabaseRow, JobRow
from remembrandt.serving.errors import ConflictError, NotFoundError, TooManyRequestsError

JobState = Literal["queued", "running", "succeeded", "failed"]
_OPEN = ("queued", "running")
_DAY_SECONDS = 86_400


@dataclass(frozen=True)
class DatabaseEntry:
    """A database that a tenant may read.

    Attributes:
        id: `db_…`; of a shared one, its name.
        uri: where its versions lie; of a view, where those of the shared database lie.
        shared: whether it is every tenant's.
    """

    id: str
    name: str
    uri: str
    where: Mapping[str, tuple[str, ...]]
    view_of: str | None = None
    shared: bool = False
    created_at: datetime | None = None


@dataclass(frozen=True)
class JobEntry:
    """A build."""

    id: str
    tenant_id: str
    database_id: str
    kind: str
    state: JobState
    message: str
    spec: Mapping[str, Any]
    stage: str
    done: int
    total: int | None
    rate: float
    version: str | None
    created_at: datetime
    finished_at: datetime | None


class TenantDatabases:
    """Databases and builds, each seen by its own tenant alone.

    Attributes:
        changes: how often this object has added or removed a database.
    """

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self.changes = 0

    def all(self, tenant_id: str) -> list[DatabaseEntry]:
        """A tenant's own, by name."""
        query = select(DatabaseRow).where(DatabaseRow.tenant_id == tenant_id).order_by(DatabaseRow.name)
        with self._accounts.read() as session:
            return [_database(row) for row in session.scalars(query)]

    def find(self, tenant_id: str, name: str) -> DatabaseEntry | None:
        """By name or id; the same query, and the same time, whether another tenant has it or nobody."""
        either = (DatabaseRow.name == name) | (DatabaseRow.id == name)
        with self._accounts.read() as session:
            row = session.scalar(select(DatabaseRow).where(DatabaseRow.tenant_id == tenant_id, either))
        return None if row is None else _database(row)

    def add(
        self,
        tenant_id: str,
        name: str,
        root: str,
        *,
        uri: str | None = None,
        view_of: str | None = None,
        where: Mapping[str, tuple[str, ...]] | None = None,
    ) -> DatabaseEntry:
        """A new one, empty: its versions will lie at `<root>/<id>/<name>`; or a view of `uri`.

        Raises:
            ConflictError: the tenant has one of this name.
        """
        database_id = new_id("db")
        row = DatabaseRow(
            id=database_id,
            tenant_id=tenant_id,
            name=name,
            uri=uri or f"{root.rstrip('/')}/{database_id}/{name}",
            view_of=view_of,
            where={column: list(values) for column, values in (where or {}).items()},
            rows=0,
            bytes=0,
            created_at=now(),
        )
        try:
            with self._accounts.write() as session:
                session.add(row)
        except IntegrityError:
            raise ConflictError(f"there is a database '{name}' already: choose another name, or delete it") from None
        self.changes += 1
        return _database(row)

    def remove(self, tenant_id: str, database_id: str) -> None:
        """Forgets a database and gives its space back.

        Raises:
            ConflictError: it is being built.
        """
        with self._accounts.write() as session:
            row = session.get(DatabaseRow, database_id)
            if row is None or row.tenant_id != tenant_id:
                raise NotFoundError(f"there is no database '{database_id}'")
            building = select(JobRow.id).where(JobRow.database_id == database_id, JobRow.state.in_(_OPEN))
            if session.scalar(building) is not None:
                raise ConflictError(f"database '{row.name}' is being built: wait for its job to end")
            Quotas.take_space(session, tenant_id, -row.rows, -row.bytes)
            session.delete(row)
        self.changes += 1

    def start_job(
        self, tenant_id: str, database_id: str, kind: str, spec: Mapping[str, Any], rows: int, size: int
    ) -> JobEntry:
        """Puts a build on record, and takes what it will need from the tenant's quota.

        Raises:
            ConflictError: another build of this database is under way.
            TooManyRequestsError: beyond the quota.
        """
        job = JobRow(
            id=new_id("job"),
            tenant_id=tenant_id,
            database_id=database_id,
            kind=kind,
            state="queued",
            message="",
            spec=dict(spec),
            stage="",
            done=0,
            rate=0.0,
            reserved_rows=rows,
            reserved_bytes=size,
            created_at=now(),
        )
        with self._accounts.write() as session:
            if not Quotas.take_space(session, tenant_id, rows, size):
                raise _beyond_quota(rows, size)
            building = select(JobRow.id).where(JobRow.database_id == database_id, JobRow.state.in_(_OPEN))
            if session.scalar(building) is not None:
                raise ConflictError("this database is being built: wait for its job to end")
            session.add(job)
        return _job(job)

    def reserve(self, job_id: str, rows: int, size: int) -> None:
        """Takes from the quota what a build is known to need by now, in place of what was reserved, if it is more.

        Raises:
            TooManyRequestsError: beyond the quota.
        """
        with self._accounts.write() as session:
            job = session.get_one(JobRow, job_id)
            if job.state not in _OPEN:
                return
            more_rows, more_size = max(rows - job.reserved_rows, 0), max(size - job.reserved_bytes, 0)
            if not Quotas.take_space(session, job.tenant_id, more_rows, more_size):
                raise _beyond_quota(rows, size)
            job.reserved_rows, job.reserved_bytes = job.reserved_rows + more_rows, job.reserved_bytes + more_size

    def find_job(self, tenant_id: str | None, job_id: str) -> JobEntry | None:
        """A tenant's build; `tenant_id` None: anyone's, for the build itself."""
        query = select(JobRow).where(JobRow.id == job_id)
        if tenant_id is not None:
            query = query.where(JobRow.tenant_id == tenant_id)
        with self._accounts.read() as session:
            row = session.scalar(query)
        return None if row is None else _job(row)

    def jobs(self, tenant_id: str, database_id: str) -> list[JobEntry]:
        """The builds of a database, newest first."""
        own = (JobRow.tenant_id == tenant_id, JobRow.database_id == database_id)
        with self._accounts.read() as session:
            return [_job(row) for row in session.scalars(select(JobRow).where(*own).order_by(JobRow.created_at.desc()))]

    def report(self, job_id: str, stage: str, done: int, total: int | None, rate: float) -> None:
        """How far a build is."""
        with self._accounts.write() as session:
            row = session.get_one(JobRow, job_id)
            if row.state in _OPEN:
                row.state, row.stage, row.done, row.total, row.rate = "running", stage[:64], done, total, rate

    def finish_job(self, job_id: str, version: str, rows: int, size: int) -> None:
        """A build has succeeded: what the database takes now stands in place of what was reserved.

        `rows` and `size` are of the live version. Called again, it changes nothing.
        """
        with self._accounts.write() as session:
            job = session.get_one(JobRow, job_id)
            database = session.get(DatabaseRow, job.database_id)
            if job.state not in _OPEN:
                return
            job.state, job.version, job.finished_at, job.message = "succeeded", version, now(), ""
            before = (0, 0) if database is None else (database.rows, database.bytes)
            Quotas.settle(
                session, job.tenant_id, rows - before[0] - job.reserved_rows, size - before[1] - job.reserved_bytes
            )
            if database is not None:
                database.rows, database.bytes = rows, size

    def fail_job(self, job_id: str, message: str) -> None:
        """A build has failed: what was reserved is given back."""
        with self._accounts.write() as session:
            job = session.get_one(JobRow, job_id)
            if job.state not in _OPEN:
                return
            job.state, job.message, job.finished_at = "failed", message[:2000], now()
            Quotas.settle(session, job.tenant_id, -job.reserved_rows, -job.reserved_bytes)


def _beyond_quota(rows: int, size: int) -> TooManyRequestsError:
    return TooManyRequestsError(
        f"{rows:,} rows and {size:,} bytes more would exceed this tenant's quota: delete something, or ask for more",
        retry_after=_DAY_SECONDS,
    )


def _database(row: DatabaseRow) -> DatabaseEntry:
    where = {column: tuple(values) for column, values in row.where.items()}
    return DatabaseEntry(row.id, row.name, row.uri, where, row.view_of, created_at=as_utc(row.created_at))


def _job(row: JobRow) -> JobEntry:
    return JobEntry(
        row.id,
        row.tenant_id,
        row.database_id,
        row.kind,
        row.state,  # type: ignore[arg-type]  # what is written is one of the four
        row.message,
        row.spec,
        row.stage,
        row.done,
        row.total,
        row.rate,
        row.version,
        as_utc(row.created_at),
        None if row.finished_at is None else as_utc(row.finished_at),
    )
