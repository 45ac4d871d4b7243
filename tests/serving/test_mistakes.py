"""What a client gets wrong is the client's mistake: never a 500."""

import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from tests.support.service import Client, Service

Quiet = Callable[..., Service]


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, "red").save(data, format="PNG")
    return data.getvalue()


def files(count: int = 1, name: str = "a.png") -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", (name, png(), "image/png")) for _ in range(count)]


def tar(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


@pytest.fixture
def alice(quiet: Quiet) -> Client:
    return quiet(shared={"emoji": "/shared/emoji"}).tenant("alice")


def test_a_signature_that_is_no_ascii_is_wrong(alice: Client) -> None:
    image = "/v1/images/img_20250101_00000000000000000000"
    assert alice.http.get(f"{image}?signature=%C3%A9&tenant=x&expires=1").status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/databases/%00", None, 404),
        ("GET", "/v1/databases/emoji/rows/0/image?version=%00", None, 400),
        ("DELETE", "/v1/keys/%00", None, 404),
        ("POST", "/v1/keys", {"label": "\0", "scopes": ["read"]}, 422),
        ("POST", "/v1/images/generations", {"prompt": "a", "database": "\0"}, 422),
        ("POST", "/v1/databases", {"name": "v", "view_of": "emoji", "where": {"licence": ["\0"]}}, 422),
        ("POST", "/knn-service", {"text": "a", "indice_name": "\0"}, 422),
    ],
)
def test_a_nul_names_nothing(
    quiet: Quiet, postgres_schema_url: str, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    """PostgreSQL takes none in a text."""
    alice = quiet(accounts=postgres_schema_url, shared={"emoji": "/shared/emoji"}).tenant("alice")
    answer = alice.http.request(method, path, json=body, headers=alice.headers)
    assert answer.status_code == status, answer.text
    assert "NUL" in answer.text or status == 404


def test_a_caption_that_is_no_unicode_is_refused(alice: Client) -> None:
    data = {"name": "a", "captions": json.dumps(["\ud800"])}
    answer = alice.post("/v1/databases/upload", data=data, files=files())
    assert answer.status_code == 400 and "surrogate" in answer.text


def test_metadata_and_names_in_an_archive_that_are_no_unicode_are_refused(alice: Client) -> None:
    for members in ({"a.png": png(), "a.json": b'{"style": "\\ud800"}'}, {"a\udcff.svg": b"<svg/>"}):
        archive = [("archive", ("a.tar", tar(members), "application/x-tar"))]
        answer = alice.post("/v1/databases/upload", data={"name": "a"}, files=archive)
        assert answer.status_code == 400, answer.text


def test_more_steps_than_a_model_may_take_are_refused(quiet: Quiet) -> None:
    models = {"rdm-small": {"kind": "rdm", "model": "rdm-small", "max_steps": 30}}
    alice = quiet(models=models, shared={"emoji": "/shared/emoji"}).tenant("alice")
    answer = alice.paint(steps=31)
    assert answer.status_code == 400 and "ask for 30 at most" in answer.text
    assert alice.get("/v1/models").json()["data"][0]["max_steps"] == 30


def test_an_upload_may_be_as_large_as_the_service_says(quiet: Quiet) -> None:
    alice = quiet(uploads={"max_images": 1200}).tenant("alice")
    captions = json.dumps(["x" * 1000] * 1200)
    many = alice.post("/v1/databases/upload", data={"name": "many", "captions": captions}, files=files(1200))
    assert many.status_code == 202, many.text
    more = alice.post("/v1/databases/upload", data={"name": "more"}, files=files(1201))
    assert more.status_code == 413 and "more than 1,200 images" in more.text
