"""A real PostgreSQL server of Debian's, on a socket of its own, ended with the session."""

import os
import pwd
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import free_ports, missing

__all__ = ["postgres_schema_url", "postgres_url"]


def postgres_programs() -> Path | None:
    """Where initdb and pg_ctl are, if they are anywhere."""
    found = shutil.which("initdb")
    places = (
        [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    )
    return next((place for place in places if (place / "initdb").exists() and (place / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an empty database; skips where no PostgreSQL is installed, in CI fails."""
    programs = postgres_programs()
    if programs is None:
        missing("no PostgreSQL is installed: apt-get install postgresql")
    assert programs is not None
    folder = tmp_path_factory.mktemp("postgres")
    # PostgreSQL does not run as root: then it runs as the user that its package makes.
    user = []
    if os.geteuid() == 0:
        account = pwd.getpwnam("postgres")
        user = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        os.chown(folder, account.pw_uid, account.pw_gid)
        for parent in list(folder.parents)[:3]:
            parent.chmod(parent.stat().st_mode | 0o011)
    (port,) = free_ports(1)
    data = folder / "data"
    run(*user, programs / "initdb", "-D", data, "-U", "remembrandt", "--auth=trust", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c max_connections=200"
    control = [*user, programs / "pg_ctl", "-D", data, "-w"]
    run(*control, "-o", options, "-l", folder / "log", "start")
    yield f"postgresql+psycopg://remembrandt@127.0.0.1:{port}/postgres"
    run(*control, "-m", "immediate", "stop")


@pytest.fixture
def postgres_schema_url(postgres_url: str) -> str:
    """URL of an empty schema of a test's own."""
    from sqlalchemy import create_engine, text

    schema = f"s{uuid.uuid4().hex}"
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    engine.dispose()
    return f"{postgres_url}?options=-csearch_path%3D{schema}"


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
