"""A service whose backend does nothing: for what is decided before anything is retrieved, painted or built."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from remembrandt.generation.requests import DatabaseRef
    from remembrandt.serving.backend import BuildFate
    from remembrandt.serving.retrieval import DatabaseFacts
    from tests.support.service import Service

__all__ = ["quiet", "quiet_service"]


class QuietBackend:
    """Notes what it is asked for.

    Attributes:
        builds: that it was told to start; `refuses` raised instead, where it is set.
        fate: of every build.
        asked: parts of databases that it was asked about.
        facts: what it says of each of them.
    """

    def __init__(self) -> None:
        self.builds: list[str] = []
        self.refuses: Exception | None = None
        self.fate: BuildFate = "under way"
        self.asked: list[DatabaseRef] = []
        self.facts: DatabaseFacts | None = None
        self.retrieval: Any = SimpleNamespace(facts=self._facts)

    async def start_build(self, job_id: str) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.builds.append(job_id)

    async def build_fate(self, job_id: str) -> "BuildFate":
        return self.fate

    async def ready(self) -> bool:
        return True

    async def _facts(self, ref: "DatabaseRef") -> "DatabaseFacts":
        from remembrandt.errors import VersionError

        self.asked.append(ref)
        if self.facts is None:
            raise VersionError("nothing is published there")
        return self.facts


@contextmanager
def quiet_service(folder: Path, **values: Any) -> "Iterator[Service]":
    """A service with these `args`."""
    from fastapi.testclient import TestClient

    from remembrandt.serving.accounts import Accounts
    from remembrandt.serving.config import parse_service
    from remembrandt.serving.http import create_app
    from tests.support.service import Service

    config = parse_service(
        {
            "accounts": f"sqlite:///{folder}/accounts.db",
            "storage": str(folder / "storage"),
            "models": {"rdm-small": {"kind": "rdm", "model": "rdm-small"}},
            **values,
        }
    )
    accounts, backend = Accounts(config.accounts_url), QuietBackend()
    app = create_app(config, backend, accounts)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Service(config, accounts, backend, client)  # type: ignore[arg-type]
    accounts.close()


@pytest.fixture
def quiet(tmp_path: Path) -> "Iterator[Callable[..., Service]]":
    """Makes such services in a folder of the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda **values: stack.enter_context(quiet_service(tmp_path, **values))
