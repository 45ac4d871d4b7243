"""No way from one tenant to another: every route with every kind of key, and thirty attempts to cross."""

import base64
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from PIL import Image

from tests.serving.test_http import finished
from tests.support.service import Client, Service

pytestmark = pytest.mark.ray

OPEN = {("GET", "/healthz"), ("GET", "/readyz")}
PAINT = {"prompt": "a red circle", "steps": 3}
# Every other route: the scope that it needs, and a request of it that a tenant may make with its own things.
ROUTES: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("GET", "/v1/models"): ("generate", {}),
    ("POST", "/v1/images/generations"): ("generate", {"json": {**PAINT, "database": "private"}}),
    ("GET", "/v1/images/{image_id}"): ("read", {}),
    ("GET", "/v1/databases"): ("read", {}),
    ("POST", "/v1/databases"): ("write", {"json": {"name": "view", "view_of": "private", "where": {"licence": [""]}}}),
    ("POST", "/v1/databases/upload"): ("write", {"data": {"name": "again"}, "files": "picture"}),
    ("GET", "/v1/databases/{database}"): ("read", {}),
    ("POST", "/v1/databases/{database}/search"): ("read", {"json": {"text": "x", "k": 2}}),
    ("GET", "/v1/databases/{database}/rows/{row}/image"): ("read", {}),
    ("POST", "/v1/databases/{database}/rows"): ("write", {"files": "picture"}),
    ("POST", "/v1/databases/{database}/rows/delete"): ("write", {"json": {"ids": [0]}}),
    ("GET", "/v1/databases/{database}/jobs"): ("read", {}),
    ("GET", "/v1/databases/{database}/jobs/{job}"): ("read", {}),
    ("GET", "/v1/databases/{database}/versions"): ("read", {}),
    ("POST", "/v1/databases/{database}/versions/{version}/publish"): ("write", {}),
    ("POST", "/v1/databases/{database}/rollback"): ("write", {"json": {}}),
    ("DELETE", "/v1/databases/{database}"): ("write", {}),
    ("GET", "/v1/usage"): ("read", {}),
    ("GET", "/v1/keys"): ("admin", {}),
    ("POST", "/v1/keys"): ("admin", {"json": {"scopes": ["read"]}}),
    ("POST", "/v1/keys/{key}/rotate"): ("admin", {}),
    ("DELETE", "/v1/keys/{key}"): ("admin", {}),
    ("GET", "/v1/audit"): ("admin", {}),
    ("POST", "/indices-list"): ("read", {}),
    ("POST", "/knn-service"): ("read", {"json": {"text": "x", "indice_name": "private", "num_images": 2}}),
    ("POST", "/metadata"): ("read", {"json": {"ids": [0], "indice_name": "private"}}),
}
SECRET = "the secret heron of alice"


def png(colour: tuple[int, int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(data, format="PNG")
    return data.getvalue()


def uploads(count: int = 6) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", (f"{n}.png", png((n * 40, 20, 90)), "image/png")) for n in range(count)]


class Things:
    """What alice has."""

    def __init__(self, alice: Client) -> None:
        captions = json.dumps([f"{SECRET} {number}" for number in range(6)])
        made = alice.post("/v1/databases/upload", data={"name": "private", "captions": captions}, files=uploads())
        job = finished(alice, "private", made.json()["id"])
        painted = alice.paint(database="private", response_format="url").json()
        self.database = alice.get("/v1/databases/private").json()["id"]
        self.job, self.version = job["id"], job["version"]
        self.image_url = painted["data"][0]["url"]
        self.image_id = self.image_url.partition("?")[0].rpartition("/")[2]
        self.thumbnail = painted["data"][0]["neighbors"][0]["thumbnail_url"]
        self.key_id = alice.get("/v1/keys").json()["data"][0]["id"]
        self.tenant_id = alice.tenant.id

    def path(self, route: str) -> str:
        """With what is alice's in the places."""
        names = {
            "{image_id}": self.image_id, "{database}": self.database, "{row}": "0", "{job}": self.job,
            "{version}": self.version, "{key}": self.key_id,
        }  # fmt: skip
        for name, value in names.items():
            route = route.replace(name, str(value))
        return route


@pytest.fixture(scope="module")
def things(tenants: tuple[Client, Client]) -> Things:
    return Things(tenants[0])


def options_of(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "files": uploads(1)} if given.get("files") == "picture" else given


def test_every_route_is_in_the_table(service: Service) -> None:
    app: Any = service.client.app
    found = {
        (method, path)
        for path, methods in app.openapi()["paths"].items()
        for method in (name.upper() for name in methods)
    }
    assert found == set(ROUTES) | OPEN
    documented = {(m, r.path) for r in app.routes if isinstance(r, APIRoute) for m in r.methods}
    assert documented <= found


@pytest.mark.parametrize(("method", "path"), sorted(ROUTES), ids=lambda value: value)
@pytest.mark.parametrize("key", ["none", "wrong", "weak", "other"])
def test_a_route_needs_the_right_key(
    service: Service, tenants: tuple[Client, Client], things: Things, method: str, path: str, key: str
) -> None:
    alice, bob = tenants
    scope, given = ROUTES[(method, path)]
    weak = "generate" if scope == "read" else "read"
    headers = {
        "none": {},
        "wrong": {"authorization": f"Bearer {alice.key[:-4]}zzzz"},
        "weak": service.as_tenant(alice.tenant, weak).headers,
        "other": bob.headers,
    }[key]
    answer = service.client.request(method, things.path(path), headers=headers, **options_of(given))
    if key in ("none", "wrong"):
        assert answer.status_code == 401
    elif key == "weak":
        assert answer.status_code == 403
    elif "{" in path or "private" in json.dumps(given):
        assert answer.status_code == 404, answer.text
    else:
        assert answer.status_code < 400, answer.text
    assert SECRET not in answer.text and things.tenant_id not in answer.text


def test_alice_still_has_what_she_had(tenants: tuple[Client, Client], things: Things) -> None:
    alice = tenants[0]
    assert alice.get("/v1/databases/private").json()["version"] == things.version
    assert alice.get("/v1/databases/private").json()["rows"] == 6
    assert alice.get(things.path("/v1/databases/{database}/jobs/{job}")).json()["state"] == "succeeded"


Attempt = Callable[[Client, Things, Service], Any]


def _with(path: str, **options: Any) -> Attempt:
    def attempt(bob: Client, things: Things, service: Service) -> Any:
        method = options.get("method", "POST" if "json" in options else "GET")
        rest = {name: value for name, value in options.items() if name != "method"}
        return service.client.request(method, things.path(path), headers=bob.headers, **rest)

    return attempt


def _signed(path: str, **changes: str) -> Attempt:
    """With a signature that was made for something of bob's."""

    def attempt(bob: Client, things: Things, service: Service) -> Any:
        own = bob.paint(response_format="url").json()["data"][0]["url"]
        query = own.partition("?")[2]
        for name, value in changes.items():
            parts = [f"{name}={value}" if part.startswith(f"{name}=") else part for part in query.split("&")]
            query = "&".join(parts)
        query = query.replace("ALICE", things.tenant_id)
        return service.client.get(f"{things.path(path)}?{query}")

    return attempt


def _file(reference: str) -> Attempt:
    def attempt(bob: Client, things: Things, service: Service) -> Any:
        place = reference.format(storage=service.config.storage, tenant=things.tenant_id, database=things.database)
        return bob.post("/v1/databases", json={"name": "stolen", "uri": place})

    return attempt


def _view(name: str, **where: list[str]) -> Attempt:
    def attempt(bob: Client, things: Things, service: Service) -> Any:
        body = {"name": "stolen", "view_of": things.path(name), "where": where}
        return bob.post("/v1/databases", json=body)

    return attempt


ATTEMPTS: dict[str, Attempt] = {
    "search by name": _with("/v1/databases/private/search", json={"bm25": "secret heron", "k": 3}),
    "search by id": _with("/v1/databases/{database}/search", json={"bm25": "secret heron", "k": 3}),
    "search by id in capitals": _with("/v1/databases/DB_X/search", json={"text": "x", "k": 3}),
    "search by path": _with("/v1/databases/..%2F{database}/search", json={"text": "x", "k": 3}),
    "search by tenant and id": _with("/v1/databases/%2e%2e/{database}/search", json={"text": "x", "k": 3}),
    "search by version of another": _with(
        "/v1/databases/drawings/search", json={"text": "x", "k": 3, "version": "../../private"}
    ),
    "paint from it": _with("/v1/images/generations", json={**PAINT, "database": "private"}),
    "paint from it by id": _with("/v1/images/generations", json={**PAINT, "database": "{database}"}),
    "paint from its place": _with("/v1/images/generations", json={**PAINT, "database": "../databases"}),
    "paint from a filter that is SQL": _with(
        "/v1/images/generations", json={**PAINT, "filters": {"style": ["x') OR ('1'='1"]}}
    ),
    "paint from a column that is SQL": _with(
        "/v1/images/generations", json={**PAINT, "filters": {"style` = 'x' OR `id": ["1"]}}
    ),
    "its row": _with("/v1/databases/{database}/rows/0/image"),
    "its row by name": _with("/v1/databases/private/rows/0/image"),
    "its picture": _with("/v1/images/{image_id}"),
    "its picture by path": _with("/v1/images/..%2F{image_id}"),
    "its picture by bob's signature": _signed("/v1/images/{image_id}"),
    "its picture by bob's signature, tenant changed": _signed("/v1/images/{image_id}", tenant="ALICE"),
    "its thumbnail by bob's signature": _signed("/v1/databases/{database}/rows/0/image"),
    "its thumbnail, tenant changed": _signed("/v1/databases/{database}/rows/0/image", tenant="ALICE"),
    "its thumbnail for ever": _signed("/v1/images/{image_id}", expires="9999999999"),
    "its job": _with("/v1/databases/{database}/jobs/{job}"),
    "its job through bob's eyes": _with("/v1/databases/drawings/jobs/{job}"),
    "its versions": _with("/v1/databases/{database}/versions"),
    "publish in it": _with("/v1/databases/{database}/versions/{version}/publish", method="POST"),
    "roll it back": _with("/v1/databases/{database}/rollback", json={}),
    "delete its rows": _with("/v1/databases/{database}/rows/delete", json={"ids": [0]}),
    "delete it": _with("/v1/databases/{database}", method="DELETE"),
    "delete it by name": _with("/v1/databases/private", method="DELETE"),
    "rotate her key": _with("/v1/keys/{key}/rotate", method="POST"),
    "revoke her key": _with("/v1/keys/{key}", method="DELETE"),
    "a view of it": _view("private"),
    "a view of it by id": _view("{database}"),
    "its files by URI": _file("{storage}/databases/{tenant}/{database}"),
    "its files by a crooked URI": _file("{storage}/databases/x/../{tenant}/{database}"),
    "its files by file://": _file("file://{storage}/databases/{tenant}/{database}"),
    "the accounts": _file("{storage}/../accounts.db"),
    "knn of it": _with("/knn-service", json={"text": "secret heron", "indice_name": "private"}),
    "metadata of it": _with("/metadata", json={"ids": [0], "indice_name": "{database}"}),
}


@pytest.mark.parametrize("name", ATTEMPTS, ids=str)
def test_an_attempt_to_cross_fails_and_tells_nothing(
    service: Service, tenants: tuple[Client, Client], things: Things, name: str
) -> None:
    answer = ATTEMPTS[name](tenants[1], things, service)
    assert 400 <= answer.status_code < 500 or SECRET not in answer.text
    assert answer.status_code < 500, answer.text
    told = answer.text
    assert SECRET not in told and things.tenant_id not in told and str(service.config.storage) not in told
    if answer.status_code == 200:
        # Only a filter that matches nothing may be answered at all.
        assert "SQL" in name and all(not own["neighbors"] for own in answer.json()["data"])


def test_there_were_thirty_attempts() -> None:
    assert len(ATTEMPTS) >= 30


def test_names_of_others_are_free_and_lists_show_ones_own(tenants: tuple[Client, Client], things: Things) -> None:
    bob = tenants[1]
    listed = bob.get("/v1/databases").json()["data"]
    assert [own["name"] for own in listed if own["shared"]] == ["drawings"]
    assert things.database not in json.dumps(listed)
    made = bob.post("/v1/databases/upload", data={"name": "private"}, files=uploads())
    assert made.status_code == 202
    own = bob.get("/v1/databases/private").json()
    assert own["id"] != things.database and own["version"] is None
    assert SECRET not in bob.post("/v1/databases/private/search", json={"text": "heron", "k": 6}).text


def test_what_is_another_tenants_takes_as_long_as_what_is_nobodys(
    tenants: tuple[Client, Client], things: Things
) -> None:
    bob = tenants[1]
    paths = f"/v1/databases/{things.database}", "/v1/databases/db_00000000000000000000"
    times: list[list[float]] = [[], []]
    for _ in range(60):  # in turn, so that both meet the same machine
        for path, own in zip(paths, times, strict=True):
            start = time.perf_counter()
            assert bob.get(path).status_code == 404
            own.append(time.perf_counter() - start)
    theirs, nobodys = (statistics.median(own) for own in times)
    assert abs(theirs - nobodys) < max(0.01, 0.5 * nobodys)


def test_storage_of_tenants_lies_apart(service: Service, things: Things) -> None:
    storage = Path(service.config.storage)
    assert (storage / "databases" / things.tenant_id / things.database).is_dir()
    assert not list((storage / "uploads" / things.tenant_id).rglob("*.png"))


def test_a_shared_part_hides_the_rest_of_its_database(service_values: dict[str, Any], tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    from remembrandt.serving.accounts import Accounts
    from remembrandt.serving.backend import LocalBackend
    from remembrandt.serving.config import parse_service
    from remembrandt.serving.http import create_app

    part = {"uri": service_values["shared"]["drawings"], "where": {"style": ["outline"]}}
    values = {**service_values, "shared": {"part": part}, "accounts": f"sqlite:///{tmp_path}/a.db"}
    config = parse_service({**values, "storage": str(tmp_path / "s")})
    backend, accounts = LocalBackend(config), Accounts(config.accounts_url)
    with TestClient(create_app(config, backend, accounts)) as http:
        carol = Service(config, accounts, backend, http).tenant("carol")
        seen = carol.post("/v1/databases/part/search", json={"text": "circle", "k": 200}).json()["rows"]
        visible = {row["row"] for row in seen}
        hidden = next(row for row in range(320) if row not in visible)
        assert len(visible) == 80
        for refused in (
            carol.get(f"/v1/databases/part/rows/{hidden}/image"),
            carol.post("/v1/databases/part/search", json={"row": hidden, "k": 2}),
            carol.post("/metadata", json={"ids": [hidden], "indice_name": "part"}),
            carol.paint(database="part", exemplars=[{"row": hidden}]),
            carol.paint(database="part", model="cascade", exemplars=[{"row": hidden}]),
        ):
            assert refused.status_code == 400, refused.text
        pixels = carol.get(f"/v1/databases/part/rows/{min(visible)}/image").content
        body = {"image": base64.b64encode(pixels).decode(), "k": 20, "filters": {"style": ["filled", "outline"]}}
        found = carol.post("/v1/databases/part/search", json=body).json()["rows"]
        assert {row["fields"]["style"] for row in found} == {"outline"}
    backend.close()
