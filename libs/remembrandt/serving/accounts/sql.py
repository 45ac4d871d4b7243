"""The connection: SQLite where nothing is said, PostgreSQL by URL; the same statements on both."""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from remembrandt.errors import ConfigError, ServiceError
from remembrandt.serving.accounts.tables import SecretRow

_MIGRATIONS = Path(__file__).with_name("migrations")
_BUSY_SECONDS = 30


class Accounts:
    """All that is remembered about tenants. Thread-safe; each replica opens its own.

    Args:
        url: `sqlite:///<path>` or `postgresql+psycopg://…`.
        migrate: whether the tables are brought up to date first.

    Raises:
        ConfigError: not such a URL.
        ServiceError: nothing answers there.
    """

    def __init__(self, url: str, *, migrate: bool = True) -> None:
        self.url = url
        self.engine = _engine(url)
        if migrate:
            self.migrate()

    def migrate(self) -> None:
        """Brings the tables up to date; of several processes, one does it and the others wait."""
        config = AlembicConfig()
        config.set_main_option("script_location", str(_MIGRATIONS))
        try:
            with self.engine.begin() as connection:
                if connection.dialect.name == "postgresql":
                    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(72706)")
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except SQLAlchemyError as error:
            raise _unreachable(self.engine, error) from error

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that may write: committed at the end, undone if anything is raised."""
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
        except OperationalError as error:
            raise _unreachable(self.engine, error) from error

    @contextmanager
    def statements(self) -> Iterator[Connection]:
        """As `write`, for plain statements."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise _unreachable(self.engine, error) from error

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads."""
        try:
            with Session(self.engine.execution_options(reads_only=True), expire_on_commit=False) as session:
                yield session
        except OperationalError as error:
            raise _unreachable(self.engine, error) from error

    def secret(self, name: str) -> bytes:
        """A random key that all replicas share; the first one that asks makes it."""
        with self.read() as session:
            if (row := session.get(SecretRow, name)) is not None:
                return bytes.fromhex(row.value)
        try:
            with self.write() as session:
                session.add(SecretRow(name=name, value=secrets.token_hex(32)))
        except IntegrityError:
            pass  # another replica was first
        with self.read() as session:
            row = session.get(SecretRow, name)
            assert row is not None
            return bytes.fromhex(row.value)

    def close(self) -> None:
        """Gives back all connections."""
        self.engine.dispose()


def now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)


def seconds() -> float:
    """Since 1970, for what expires."""
    return time.time()


def new_id(prefix: str) -> str:
    """An id that cannot be guessed."""
    return f"{prefix}_{secrets.token_hex(10)}"


def as_utc(at: datetime) -> datetime:
    """SQLite forgets time zones; all of ours are UTC."""
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _engine(url: str) -> Engine:
    if url.startswith("sqlite:///"):
        return _sqlite(url)
    if url.startswith("postgresql"):
        try:
            return sqlalchemy.create_engine(url, pool_size=8, max_overflow=24, pool_pre_ping=True)
        except ModuleNotFoundError:
            raise ConfigError("PostgreSQL needs psycopg: install remembrandt[postgresql]") from None
    raise ConfigError(f"accounts '{url.partition('://')[0]}://…': use sqlite:///<path> or postgresql+psycopg://…")


def _sqlite(url: str) -> Engine:
    path = Path(url.removeprefix("sqlite:///"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"accounts {url}: cannot make {path.parent}: {error.strerror}") from None
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlalchemy.engine.interfaces.DBAPIConnection, _: object) -> None:
        connection.isolation_level = None  # SQLAlchemy begins, below; Python's driver would do so too late
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={_BUSY_SECONDS}000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads first and writes later cannot wait for another writer: it would fail.
        reads_only = connection.get_execution_options().get("reads_only", False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")

    return engine


def _unreachable(engine: Engine, error: SQLAlchemyError) -> ServiceError:
    reason = " ".join(str(getattr(error, "orig", error)).split())[:160]
    where = engine.url.render_as_string(hide_password=True)
    return ServiceError(f"the accounts at {where} cannot be used ({reason}): check that the database is up")
