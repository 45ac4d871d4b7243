"""What a replica of the ingress remembers for a moment, and what it must not."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from remembrandt.errors import ConfigError
from remembrandt.serving.accounts import Accounts, DatabaseEntry, Keys, Tenants
from remembrandt.serving.config import parse_service
from remembrandt.serving.errors import NotFoundError
from remembrandt.serving.http.services import RecentlyFound, Services


@pytest.fixture
def services(tmp_path: Path) -> Any:
    accounts = Accounts(f"sqlite:///{tmp_path}/accounts.db")
    models = {"rdm-small": {"kind": "rdm", "model": "rdm-small"}}
    config = parse_service({"accounts": str(accounts.engine.url), "storage": str(tmp_path), "models": models})
    yield Services(config, None, accounts)  # type: ignore[arg-type]
    accounts.close()


def test_a_database_is_asked_for_once_and_a_removed_one_is_gone_at_once(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = (Tenants(services.accounts).create(name).id for name in ("alice", "bob"))
    asked: list[str] = []
    find = services.databases.find

    def counting(tenant_id: str, name: str) -> DatabaseEntry | None:
        asked.append(tenant_id)
        return find(tenant_id, name)

    monkeypatch.setattr(services.databases, "find", counting)
    monkeypatch.setattr("remembrandt.serving.http.services.time.monotonic", lambda: 100.0)
    with pytest.raises(NotFoundError):
        asyncio.run(services.database(alice, "mine"))
    added = services.databases.add(alice, "mine", "/databases")
    for _ in range(5):
        assert asyncio.run(services.database(alice, "mine")) == added
    assert asked == [alice, alice], "once in vain, once found"
    with pytest.raises(NotFoundError):
        asyncio.run(services.database(bob, "mine"))
    services.databases.remove(alice, added.id)
    with pytest.raises(NotFoundError):
        asyncio.run(services.database(alice, "mine"))


def test_a_key_that_is_revoked_ends_after_its_moment(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = Tenants(services.accounts).create("alice").id
    key = Keys(services.accounts).create(tenant)
    clock = [100.0]
    monkeypatch.setattr("remembrandt.serving.http.services.time.monotonic", lambda: clock[0])
    assert asyncio.run(services.principal(key.secret)) is not None
    assert asyncio.run(services.principal(key.secret + "x")) is None
    Keys(services.accounts).revoke(tenant, key.id)
    assert asyncio.run(services.principal(key.secret)) is not None
    clock[0] += 3.1
    assert asyncio.run(services.principal(key.secret)) is None


def test_what_was_found_is_remembered_for_so_many_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remembrandt.serving.http.services._KNOWN", 2)
    found: RecentlyFound[int, str] = RecentlyFound(60.0)
    looked: list[int] = []

    def look(key: int) -> str:
        looked.append(key)
        return f"value {key}"

    for key in (1, 2, 3, 3, 2, 1):
        assert asyncio.run(found.get(key, lambda key=key: look(key))) == f"value {key}"
    assert looked == [1, 2, 3, 1], "the oldest is forgotten first"


def test_models_within_the_ingress_do_not_wait_for_each_others_threads(tmp_path: Path) -> None:
    own = {"kind": "rdm", "model": "rdm-small", "replicas": None}
    values = {"accounts": "sqlite:///unused", "storage": str(tmp_path)}
    apart = {**own, "threads": 2, "replicas": {}}
    parse_service({**values, "models": {"a": {**own, "threads": 2}, "b": own, "c": apart}})
    with pytest.raises(ConfigError, match="models a, b would each draw with several threads"):
        parse_service({**values, "models": {"a": {**own, "threads": 2}, "b": {**own, "threads": 2}}})
