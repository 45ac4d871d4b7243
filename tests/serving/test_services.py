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


def with_shared(services: Services, **shared: Any) -> Services:
    """The same accounts, after the operator has changed what is shared."""
    values = {**services.config.model_dump(mode="json"), "shared": shared}
    return Services(parse_service(values), services.backend, services.accounts)


def view(services: Services, tenant_id: str, name: str, base: str, **where: tuple[str, ...]) -> DatabaseEntry:
    """As the API makes one."""
    found = asyncio.run(services.database(tenant_id, base))
    return services.databases.add(tenant_id, name, "", uri=found.uri, view_of=found.name, where=where)


def test_a_view_shows_what_it_is_of_as_that_is_now(services: Services) -> None:
    alice = Tenants(services.accounts).create("alice").id
    before = with_shared(services, emoji="/old/emoji")
    view(before, alice, "mine", "emoji", licence=("MIT", "CC0"), style=("flat",))
    view(before, alice, "emoji", "emoji")
    view(before, alice, "inner", "mine", style=("flat", "round"))
    assert asyncio.run(before.database(alice, "mine")).where == {"licence": ("MIT", "CC0"), "style": ("flat",)}
    after = with_shared(services, emoji={"uri": "/new/emoji", "where": {"licence": ["MIT", "BSD"]}})
    for name, style in (("mine", {"style": ("flat",)}), ("inner", {"style": ("flat",)}), ("emoji", {})):
        found = asyncio.run(after.database(alice, name))
        assert (found.uri, found.where) == ("/new/emoji", {"licence": ("MIT",) if style else ("MIT", "BSD"), **style})


def test_a_view_of_what_is_gone_is_gone_and_can_still_be_listed(services: Services) -> None:
    alice = Tenants(services.accounts).create("alice").id
    before = with_shared(services, emoji="/old/emoji")
    own = before.databases.add(alice, "own", "/databases")
    for base in ("emoji", "own"):
        view(before, alice, f"of-{base}", base)
    before.databases.remove(alice, own.id)
    before.databases.add(alice, "own", "/databases")
    after = with_shared(services)
    for name in ("of-emoji", "of-own"):
        with pytest.raises(NotFoundError):
            asyncio.run(after.database(alice, name))
    assert [(entry.name, is_there) for entry, is_there in after.own_entries(alice)] == [
        ("of-emoji", False),
        ("of-own", False),
        ("own", True),
    ]
