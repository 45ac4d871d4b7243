"""Keys, quotas and rates, on SQLite and on PostgreSQL alike."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select

from remembrandt.errors import ConfigError, ServiceError
from remembrandt.serving.accounts import Accounts, Keys, Limits, Principal, Quotas, RateLimits, TenantDatabases, Tenants
from remembrandt.serving.accounts.sql import now, seconds
from remembrandt.serving.accounts.tables import Base, KeyRow, LeaseRow
from remembrandt.serving.errors import ConflictError, TooManyRequestsError

WRITERS = 16


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/accounts.db"
        return
    yield request.getfixturevalue("postgres_schema_url")


@pytest.fixture
def accounts(url: str) -> Iterator[Accounts]:
    opened = Accounts(url)
    yield opened
    opened.close()


def principal_of(accounts: Accounts, name: str = "alice", **limits: int) -> Principal:
    tenant = Tenants(accounts).create(name, Limits(**limits))
    found = Keys(accounts).verify(Keys(accounts).create(tenant.id).secret)
    assert found is not None
    return found


def in_parallel(url: str, work: Callable[[Accounts], bool], times: int) -> int:
    """How often `work` said yes, with a connection of its own for each of 16 writers."""
    gate = threading.Barrier(WRITERS)

    def writer(_: int) -> int:
        own = Accounts(url, migrate=False)
        gate.wait()
        done = sum(work(own) for _ in range(times))
        own.close()
        return done

    with ThreadPoolExecutor(WRITERS) as pool:
        return sum(pool.map(writer, range(WRITERS)))


def test_migrations_make_the_tables_that_the_code_has(accounts: Accounts) -> None:
    with accounts.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_key_is_known_by_its_secret_and_kept_without_it(accounts: Accounts) -> None:
    tenant = Tenants(accounts).create("alice")
    made = Keys(accounts).create(tenant.id, ["read"], "laptop")
    found = Keys(accounts).verify(made.secret)
    assert found is not None and found.tenant_name == "alice" and found.may("read") and not found.may("write")
    with accounts.read() as session:
        (row,) = session.scalars(select(KeyRow))
    assert made.secret.split("_", 2)[2] not in repr(vars(row))


@pytest.mark.parametrize("change", ["secret", "id", "prefix", "cut", "empty"])
def test_a_wrong_key_is_nobody(accounts: Accounts, change: str) -> None:
    key = Keys(accounts).create(Tenants(accounts).create("alice").id).secret
    prefix, key_id, secret = key.split("_", 2)
    wrong = {
        "secret": f"{prefix}_{key_id}_{secret[::-1]}",
        "id": f"{prefix}_{key_id[::-1]}_{secret}",
        "prefix": f"sk_{key_id}_{secret}",
        "cut": key[:-1],
        "empty": "",
    }[change]
    assert Keys(accounts).verify(wrong) is None


def test_keys_end_when_they_expire_are_revoked_or_their_tenant_is_shut_out(accounts: Accounts) -> None:
    keys, tenant = Keys(accounts), Tenants(accounts).create("alice")
    short, revoked, fine = keys.create(tenant.id, days=1), keys.create(tenant.id), keys.create(tenant.id)
    with accounts.write() as session:
        session.get_one(KeyRow, short.id).expires_at = now() - timedelta(seconds=1)
    keys.revoke(tenant.id, revoked.id)
    assert keys.verify(short.secret) is None
    assert keys.verify(revoked.secret) is None
    assert keys.verify(fine.secret) is not None
    Tenants(accounts).change("alice", disabled=True)
    assert keys.verify(fine.secret) is None


def test_a_rotated_key_lives_on_for_a_day_and_no_longer(accounts: Accounts) -> None:
    keys, tenant = Keys(accounts), Tenants(accounts).create("alice")
    old = keys.create(tenant.id, ["read", "write"])
    new = keys.rotate(tenant.id, old.id)
    assert new.scopes == ("read", "write")
    assert keys.verify(old.secret) is not None and keys.verify(new.secret) is not None
    (known, _) = keys.all(tenant.id)
    assert known.expires_at is not None and known.expires_at < now() + timedelta(days=1.01)


def test_a_key_of_another_tenant_cannot_be_revoked_or_rotated(accounts: Accounts) -> None:
    keys, alice, bob = Keys(accounts), Tenants(accounts).create("alice"), Tenants(accounts).create("bob")
    own = keys.create(alice.id)
    for change in (keys.revoke, keys.rotate):
        with pytest.raises(ConfigError, match="no key"):
            change(bob.id, own.id)
    assert keys.verify(own.secret) is not None


def test_sixteen_writers_get_exactly_the_images_of_a_day(accounts: Accounts, url: str) -> None:
    principal = principal_of(accounts, images_per_day=100, max_concurrent=1000)

    def paint(own: Accounts) -> bool:
        try:
            quotas = Quotas(own)
            quotas.give_back(quotas.take(principal, 3, 60), painted=3)
        except TooManyRequestsError:
            return False
        return True

    assert in_parallel(url, paint, 4) == 33
    assert Quotas(accounts).used_today(principal.tenant_id) == 99


def test_sixteen_writers_get_exactly_the_rows_of_a_tenant(accounts: Accounts, url: str) -> None:
    tenant = Tenants(accounts).create("alice", Limits(max_rows=100, max_bytes=10_000))

    def take(own: Accounts) -> bool:
        with own.write() as session:
            return Quotas.take_space(session, tenant.id, 7, 10)

    assert in_parallel(url, take, 4) == 14
    assert Tenants(accounts).find("alice").used_rows == 98


def test_only_as_many_requests_are_under_way_as_are_allowed(accounts: Accounts, url: str) -> None:
    principal = principal_of(accounts, max_concurrent=5)
    hold, tried = threading.Event(), threading.Barrier(WRITERS + 1)

    def enter(_: int) -> bool:
        own = Accounts(url, migrate=False)
        try:
            lease = Quotas(own).take(principal, 1, 60)
            tried.wait()
            hold.wait(30)
            Quotas(own).give_back(lease)
            return True
        except TooManyRequestsError:
            tried.wait()
            return False
        finally:
            own.close()

    with ThreadPoolExecutor(WRITERS) as pool:
        entered = [pool.submit(enter, number) for number in range(WRITERS)]
        tried.wait(60)
        hold.set()
        assert sum(own.result() for own in entered) == 5


def test_what_was_not_painted_is_given_back(accounts: Accounts) -> None:
    principal, quotas = principal_of(accounts, images_per_day=10), Quotas(accounts)
    quotas.give_back(quotas.take(principal, 8, 60))
    quotas.give_back(quotas.take(principal, 8, 60), painted=5)
    assert quotas.used_today(principal.tenant_id) == 5


def test_a_request_whose_process_died_ends_by_itself(accounts: Accounts) -> None:
    principal, quotas = principal_of(accounts, max_concurrent=1), Quotas(accounts)
    with accounts.write() as session:
        session.add(LeaseRow(id="dead", tenant_id=principal.tenant_id, expires_at=seconds() - 1))
    quotas.give_back(quotas.take(principal, 1, 60))
    with accounts.write() as session:
        session.add(LeaseRow(id="alive", tenant_id=principal.tenant_id, expires_at=seconds() + 60))
    with pytest.raises(TooManyRequestsError, match="under way"):
        quotas.take(principal, 1, 60)


def test_a_rate_holds_across_replicas_and_restarts(accounts: Accounts, url: str) -> None:
    principal = principal_of(accounts, requests_per_minute=3)
    for _ in range(3):
        replica = Accounts(url, migrate=False)
        RateLimits(replica).check(principal)
        replica.close()
    with pytest.raises(TooManyRequestsError, match="3 requests a minute") as refused:
        RateLimits(accounts).check(principal)
    assert 1 <= refused.value.retry_after <= 61
    other = principal_of(accounts, "bob", requests_per_minute=3)
    RateLimits(accounts).check(other)


def test_sixteen_writers_are_counted_without_loss(accounts: Accounts, url: str) -> None:
    principal = principal_of(accounts, requests_per_minute=50)

    def ask(own: Accounts) -> bool:
        try:
            RateLimits(own).check(principal)
        except TooManyRequestsError:
            return False
        return True

    start = int(seconds() // 60)
    allowed = in_parallel(url, ask, 5)
    windows = int(seconds() // 60) - start + 1  # limits counts by whole minutes
    assert allowed == 50 or (windows > 1 and 50 < allowed <= 80)


def test_a_build_holds_its_quota_until_it_ends(accounts: Accounts) -> None:
    tenants, databases = Tenants(accounts), TenantDatabases(accounts)
    tenant = tenants.create("alice", Limits(max_rows=10, max_bytes=1000))
    entry = databases.add(tenant.id, "mine", "root")
    job = databases.start_job(tenant.id, entry.id, "create", {}, 8, 100)
    assert tenants.find("alice").used_rows == 8
    other = databases.add(tenant.id, "other", "root")
    with pytest.raises(TooManyRequestsError, match="quota"):
        databases.start_job(tenant.id, other.id, "create", {}, 3, 1)
    with pytest.raises(ConflictError, match="being built"):
        databases.start_job(tenant.id, entry.id, "add", {}, 1, 1)
    databases.finish_job(job.id, "v1", 6, 70)
    databases.finish_job(job.id, "v1", 6, 70)
    assert (tenants.find("alice").used_rows, tenants.find("alice").used_bytes) == (6, 70)
    failed = databases.start_job(tenant.id, other.id, "create", {}, 3, 1)
    databases.fail_job(failed.id, "no")
    assert tenants.find("alice").used_rows == 6
    databases.remove(tenant.id, entry.id)
    assert (tenants.find("alice").used_rows, tenants.find("alice").used_bytes) == (0, 0)


def test_all_replicas_sign_with_the_same_secret(accounts: Accounts, url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(lambda _: Accounts(url, migrate=False).secret("urls"), range(8)))
    assert secrets == {accounts.secret("urls")}


def test_accounts_that_cannot_be_reached_are_one_clear_line() -> None:
    with pytest.raises(ConfigError, match="sqlite:///"):
        Accounts("mysql://somewhere")
    with pytest.raises(ServiceError, match="cannot be used") as refused:
        Accounts("postgresql+psycopg://u:secret@127.0.0.1:1/x")
    assert "secret" not in str(refused.value)
