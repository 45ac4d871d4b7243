"""A whole service in this process: the HTTP API over tiny real models, real databases and real accounts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

    from remembrandt.serving.accounts import Accounts, Tenant
    from remembrandt.serving.backend import LocalBackend
    from remembrandt.serving.config import ServiceConfig
    from tests.support.ray_cluster import RayCluster

__all__ = ["service", "service_values", "tenants"]

ALL_SCOPES = ("read", "generate", "write", "admin")


@dataclass(frozen=True)
class Service:
    """A running service, and a client that speaks HTTP with it."""

    config: "ServiceConfig"
    accounts: "Accounts"
    backend: "LocalBackend"
    client: "TestClient"

    def tenant(self, name: str, **limits: int) -> "Client":
        """A new tenant, asking with a key of all scopes."""
        from remembrandt.serving.accounts import Limits, Tenants

        made = Tenants(self.accounts).create(name, Limits(**{"requests_per_minute": 0, **limits}))
        return self.as_tenant(made)

    def as_tenant(self, tenant: "Tenant", *scopes: str) -> "Client":
        """A client with a new key."""
        from remembrandt.serving.accounts import Keys

        return Client(self.client, tenant, Keys(self.accounts).create(tenant.id, scopes or ALL_SCOPES).secret)


@dataclass(frozen=True)
class Client:
    """Asks as one tenant."""

    http: "TestClient"
    tenant: "Tenant"
    key: str

    @property
    def headers(self) -> dict[str, str]:
        """With the key."""
        return {"authorization": f"Bearer {self.key}"}

    def get(self, path: str, **options: Any) -> Any:
        return self.http.get(path, headers=self.headers, **options)

    def post(self, path: str, **options: Any) -> Any:
        return self.http.post(path, headers=self.headers, **options)

    def delete(self, path: str) -> Any:
        return self.http.delete(path, headers=self.headers)

    def paint(self, **body: Any) -> Any:
        """A small picture, drawn in three steps."""
        return self.post("/v1/images/generations", json={"prompt": "a red circle", "steps": 3, **body})


@pytest.fixture(scope="session")
def service_values(
    _session_ray_cluster: "RayCluster",
    emoji_like_database: str,
    tiny_clip: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """`args` of a service with a tiny RDM and a tiny cascade over the drawings; add `accounts` and `storage`."""
    from remembrandt.databases.database import Database
    from tests.support.models import TINY_RDM, save_tiny_cascade, save_tiny_rdm

    folder = tmp_path_factory.mktemp("served")
    with Database.open(emoji_like_database) as database:
        config = TINY_RDM.model_copy(update={"context_dim": 64})
        rdm = save_tiny_rdm(folder / "rdm", config, encoder=database.manifest.encoder)
    cascade = save_tiny_cascade(folder / "cascade", tiny_clip)
    return {
        "models": {
            "rdm": {"kind": "rdm", "model": str(rdm), "steps": 3, "max_steps": 1000, "max_batch": 8},
            "cascade": {"kind": "reimagen", "model": str(cascade), "steps": 3, "max_steps": 1000, "max_batch": 8},
        },
        "shared": {"drawings": emoji_like_database},
        "encoder": {"model": str(tiny_clip), "precision": "fp32"},
        "uploads": {"max_images": 50, "max_image_bytes": 200_000, "max_request_bytes": 3_000_000},
    }


@pytest.fixture(scope="module")
def service(
    service_values: dict[str, Any], _session_ray_cluster: "RayCluster", tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service of this module, with SQLite."""
    from fastapi.testclient import TestClient

    from remembrandt.serving.accounts import Accounts
    from remembrandt.serving.backend import LocalBackend
    from remembrandt.serving.config import parse_service
    from remembrandt.serving.http import create_app

    folder = tmp_path_factory.mktemp("service")
    values = {"accounts": f"sqlite:///{folder}/accounts.db", "storage": str(folder / "storage"), **service_values}
    config = parse_service(values)
    accounts, backend = Accounts(config.accounts_url), LocalBackend(config)
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_ADDRESS", _session_ray_cluster.address)  # builds are processes of their own
    with TestClient(create_app(config, backend, accounts), raise_server_exceptions=False) as client:
        yield Service(config, accounts, backend, client)
    patch.undo()
    backend.close()
    accounts.close()


@pytest.fixture(scope="module")
def tenants(service: Service) -> tuple[Client, Client]:
    """Two tenants."""
    return service.tenant("alice"), service.tenant("bob")
