"""The HTTP API over tiny real models: what clients ask for, and what they are told."""

import asyncio
import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from remembrandt.generation import read_record
from remembrandt.serving.telemetry import RequestParts
from tests.support.pictures import draw, drawings
from tests.support.service import Client, Service

pytestmark = pytest.mark.ray


def picture_of(answer: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["b64_json"]))))


def png(number: int = 0) -> bytes:
    data = io.BytesIO()
    draw(*list(drawings())[number * 7]).save(data, format="PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def alice(tenants: tuple[Client, Client]) -> Client:
    return tenants[0]


@pytest.fixture
def openai(service: Service, alice: Client) -> OpenAI:
    return OpenAI(base_url="http://testserver/v1", api_key=alice.key, http_client=service.client, max_retries=0)  # type: ignore[arg-type]


def test_each_picture_comes_with_the_rows_that_made_it(alice: Client) -> None:
    answer = alice.paint(n=2, seed=5).json()
    assert [own["seed"] for own in answer["data"]] == [5, 6]
    assert answer["database"] == "drawings" and answer["version"]
    for own in answer["data"]:
        assert picture_of(own).shape == (16, 16, 3)
        assert len(own["neighbors"]) == 4
        assert all(row["licence"] and row["caption"] for row in own["neighbors"])
        inside = read_record(io.BytesIO(base64.b64decode(own["b64_json"])))
        assert [row.id for row in inside.neighbors] == [row["row"] for row in own["neighbors"]]
        thumbnail = alice.http.get(own["neighbors"][0]["thumbnail_url"])
        assert thumbnail.status_code == 200 and Image.open(io.BytesIO(thumbnail.content)).format == "PNG"


def test_the_same_seed_gives_the_same_picture_whatever_it_is_drawn_beside(alice: Client) -> None:
    alone = alice.paint(seed=3).json()["data"][0]
    beside = alice.paint(seed=1, n=3).json()["data"][2]
    np.testing.assert_allclose(picture_of(alone).astype(int), picture_of(beside).astype(int), atol=1)


@pytest.mark.parametrize(
    "body",
    [
        {"strategy": "text"},
        {"strategy": "text_and_neighbors"},
        {"strategy": "class_pool", "prompt": "circle"},
        {"strategy": "bm25"},
        {"strategy": "neighbors", "num_neighbors": 2, "filters": {"style": ["outline"]}},
        {"exemplars": [{"row": 3}, {"row": 1}]},
        {"guidance": {"kind": "classifier_free", "scale": 1.0}, "solver": "ddim"},
        {"model": "cascade"},
        {"model": "cascade", "strategy": "clip", "num_neighbors": 1},
        {"model": "cascade", "strategy": "none"},
        {"model": "cascade", "exemplars": [{"row": 2}]},
        {"model": "cascade", "guidance": {"kind": "weighted", "text_weight": 3, "neighbor_weight": 1.5}},
    ],
    ids=json.dumps,
)
def test_every_strategy_and_guidance_paints(alice: Client, body: dict[str, Any]) -> None:
    answer = alice.paint(**body)
    assert answer.status_code == 200, answer.text
    own = answer.json()["data"][0]
    for row, wanted in zip(own["neighbors"], body.get("exemplars", []), strict=False):
        assert row["row"] == wanted["row"]
    if "filters" in body:
        assert {row["fields"]["style"] for row in own["neighbors"]} == {"outline"}


def test_pictures_that_a_client_sends_are_exemplars_and_queries(alice: Client) -> None:
    sent = "data:image/png;base64," + base64.b64encode(png(7)).decode()
    mixed = alice.paint(prompt="", exemplars=[{"row": 4}, {"image": sent}]).json()["data"][0]
    assert [row["row"] for row in mixed["neighbors"]] == [4, None]
    query = alice.paint(prompt="", strategy="image", exemplars=[{"image": sent}])
    assert query.status_code == 200 and len(query.json()["data"][0]["neighbors"]) == 4
    pair = alice.paint(model="cascade", exemplars=[{"image": sent, "caption": "a circle"}]).json()["data"][0]
    assert pair["neighbors"][0]["caption"] == "a circle"


def test_a_row_that_is_switched_off_is_not_retrieved(alice: Client) -> None:
    first = [row["row"] for row in alice.paint().json()["data"][0]["neighbors"]]
    second = [row["row"] for row in alice.paint(without=first[:2]).json()["data"][0]["neighbors"]]
    assert not set(first[:2]) & set(second) and set(first[2:]) <= set(second)


def test_the_openai_client_works_as_it_is(openai: OpenAI) -> None:
    made = openai.images.generate(prompt="a red circle", n=2, extra_body={"steps": 3})
    assert made.data is not None and len(made.data) == 2
    assert made.data[0].b64_json is not None
    linked = openai.images.generate(prompt="a red circle", response_format="url", extra_body={"steps": 3})
    assert linked.data is not None and linked.data[0].url is not None
    assert "rdm" in [model.id for model in openai.models.list()]


def test_the_openai_client_reads_the_stream(openai: OpenAI) -> None:
    events = list(
        openai.images.generate(
            prompt="a red circle", n=2, stream=True, partial_images=2, extra_body={"steps": 8, "seed": 9}
        )
    )
    kinds = [event.type for event in events]
    assert kinds.count("image_generation.completed") == 2
    assert kinds.count("image_generation.partial_image") == 4
    assert kinds[-1] == "image_generation.completed"
    last = np.asarray(Image.open(io.BytesIO(base64.b64decode(events[-1].b64_json))))
    plain = openai.images.generate(prompt="a red circle", n=2, extra_body={"steps": 8, "seed": 9})
    assert plain.data is not None
    np.testing.assert_allclose(last.astype(int), picture_of(plain.data[1].model_dump()).astype(int), atol=1)


def test_a_linked_picture_opens_without_a_key_and_not_when_the_link_is_changed(alice: Client) -> None:
    url = alice.paint(response_format="url").json()["data"][0]["url"]
    assert alice.http.get(url).status_code == 200
    for changed in (url[:-1] + ("0" if url[-1] != "0" else "1"), url.replace("tenant=tn_", "tenant=tn_0"),
                    url.partition("&signature")[0]):  # fmt: skip
        assert alice.http.get(changed).status_code == 401


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "dall-e-3"}, 404, "no model 'dall-e-3'"),
        ({"database": "nowhere"}, 404, "no database 'nowhere'"),
        ({"size": "1024x1024"}, 400, "ask for 16x16"),
        ({"n": 40}, 400, "at most 16"),
        ({"strategy": "clip"}, 400, "has no strategy 'clip'"),
        ({"strategy": "dream"}, 422, "strategy"),
        ({"guidance": {"kind": "joint"}}, 400, "no guidance 'joint'"),
        ({"prompt": "", "strategy": "neighbors"}, 400, "needs a prompt"),
        ({"strategy": "exemplars"}, 400, "needs `exemplars`"),
        ({"exemplars": [{"row": 10**6}]}, 400, "no row 1000000"),
        ({"exemplars": [{"image": "no picture"}]}, 400, "exemplar 0"),
        ({"filters": {"colour": ["red"]}}, 400, "cannot be filtered by 'colour'"),
        ({"steps": 999, "model": "rdm", "solver": "unipc", "timeout": 0.05}, 504, "not drawn within"),
        ({"promt": "typo"}, 422, "promt"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_a_mistake_is_one_clear_sentence(alice: Client, body: dict[str, Any], status: int, words: str) -> None:
    answer = alice.paint(**body)
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]["message"]
    assert words in message and "\n" not in message and "Traceback" not in message


def test_a_day_of_images_ends_with_429_and_says_for_how_long(service: Service) -> None:
    poor = service.tenant("poor", images_per_day=3)
    assert poor.paint(n=2).status_code == 200
    refused = poor.paint(n=2)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    assert poor.paint(n=1).status_code == 200
    assert poor.get("/v1/usage").json()["images_today"] == 3


def test_a_failed_request_costs_no_image(service: Service) -> None:
    careless = service.tenant("careless")
    assert careless.paint(filters={"colour": ["red"]}).status_code == 400
    assert careless.get("/v1/usage").json()["images_today"] == 0


def test_a_rate_is_held(service: Service) -> None:
    hasty = service.tenant("hasty", requests_per_minute=5)
    statuses = [hasty.get("/v1/models").status_code for _ in range(12)]
    assert statuses[:5] == [200] * 5 and 429 in statuses


@pytest.mark.parametrize("query", [{"text": "a red circle"}, {"bm25": "red circle"}, {"row": 0}])
def test_search_finds_rows_by_text_caption_or_row(alice: Client, query: dict[str, Any]) -> None:
    found = alice.post("/v1/databases/drawings/search", json={**query, "k": 5}).json()
    assert len(found["rows"]) == 5
    scores = [row["score"] for row in found["rows"]]
    assert scores == sorted(scores, reverse=True)
    filtered = alice.post("/v1/databases/drawings/search", json={**query, "k": 5, "filters": {"style": ["outline"]}})
    assert {row["fields"]["style"] for row in filtered.json()["rows"]} == {"outline"}


def test_a_picture_finds_itself(alice: Client) -> None:
    image = alice.get("/v1/databases/drawings/rows/17/image").content
    body = {"image": base64.b64encode(image).decode(), "k": 3}
    found = alice.post("/v1/databases/drawings/search", json=body).json()["rows"]
    assert 17 in [row["row"] for row in found]


def make_database(alice: Client, name: str) -> str:
    """Eight pictures with captions; returns the version."""
    files = [("images", (f"{number}.png", png(number), "image/png")) for number in range(8)]
    captions = json.dumps([f"thing number {number}" for number in range(8)])
    made = alice.post("/v1/databases/upload", data={"name": name, "captions": captions}, files=files)
    assert made.status_code == 202, made.text
    return str(finished(alice, name, made.json()["id"])["version"])


def test_a_database_is_made_searched_painted_from_and_deleted(alice: Client) -> None:
    make_database(alice, "own")
    found = alice.post("/v1/databases/own/search", json={"bm25": "number 3", "k": 3}).json()
    assert found["rows"][0]["caption"] == "thing number 3"
    usage = alice.get("/v1/usage").json()
    assert usage["rows"] == 8 and usage["bytes"] > 0
    assert alice.paint(database="own").json()["database"] == alice.get("/v1/databases/own").json()["name"] == "own"
    assert len(alice.paint(database="own", num_neighbors=16).json()["data"][0]["neighbors"]) == 8, "all that there are"
    assert alice.paint(database="own", prompt="").status_code == 200
    assert alice.delete("/v1/databases/own").status_code == 204
    assert alice.get("/v1/databases/own").status_code == 404
    assert alice.get("/v1/usage").json()["rows"] == 0


def test_a_build_that_is_killed_leaves_neither_its_upload_nor_a_hole_in_the_quota(service: Service) -> None:
    unlucky = service.tenant("unlucky")
    files = [("images", ("a.png", png(), "image/png"))]
    job = unlucky.post("/v1/databases/upload", data={"name": "own"}, files=files).json()["id"]
    uploads = Path(service.config.storage) / "uploads" / unlucky.tenant.id
    assert list(uploads.rglob("*.png")) and unlucky.get("/v1/usage").json()["rows"] == 1
    process = service.backend._builds[job]
    process.kill()
    process.wait()
    found = unlucky.get(f"/v1/databases/own/jobs/{job}").json()
    assert found["state"] == "failed" and "send it again" in found["message"]
    assert not list(uploads.rglob("*.png")) and unlucky.get("/v1/usage").json()["rows"] == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rows_are_added_and_deleted_and_versions_published_and_rolled_back(alice: Client) -> None:
    first = make_database(alice, "changing")
    more = [("images", ("new.png", png(20), "image/png"))]
    added = alice.post("/v1/databases/changing/rows", data={"captions": '["a new thing"]'}, files=more)
    second = finished(alice, "changing", added.json()["id"])["version"]
    assert alice.get("/v1/databases/changing").json()["rows"] == 9 and second != first
    gone = alice.post("/v1/databases/changing/rows/delete", json={"ids": [0, 1]})
    third = finished(alice, "changing", gone.json()["id"])["version"]
    assert alice.get("/v1/databases/changing").json()["rows"] == 7

    assert [v["id"] for v in alice.get("/v1/databases/changing/versions").json()["data"]] == [first, second, third]
    assert alice.post("/v1/databases/changing/rollback", json={}).json()["version"] == second
    assert alice.post(f"/v1/databases/changing/versions/{first}/publish").json()["version"] == first
    time.sleep(0.3)  # the live version is looked up at most four times a second
    assert alice.get("/v1/databases/changing").json()["rows"] == 8
    assert alice.delete("/v1/databases/changing").status_code == 204


def test_a_view_shows_only_its_rows(alice: Client) -> None:
    body = {"name": "flat", "view_of": "drawings", "where": {"style": ["outline"]}}
    assert alice.post("/v1/databases", json=body).status_code == 201
    found = alice.post("/v1/databases/flat/search", json={"text": "circle", "k": 10}).json()["rows"]
    assert {row["fields"]["style"] for row in found} == {"outline"}
    hidden = alice.post("/v1/databases/drawings/search", json={"text": "circle", "k": 50}).json()["rows"]
    outside = next(row["row"] for row in hidden if row["fields"]["style"] != "outline")
    assert alice.get(f"/v1/databases/flat/rows/{outside}/image").status_code == 400
    assert alice.paint(database="flat", exemplars=[{"row": outside}]).status_code == 400
    narrowed = alice.post("/v1/databases/flat/search", json={"text": "x", "k": 5, "filters": {"style": ["small"]}})
    assert narrowed.json()["rows"] == []
    assert alice.post("/v1/databases/flat/rows/delete", json={"ids": [0]}).status_code == 409
    assert alice.delete("/v1/databases/flat").status_code == 204
    assert alice.delete("/v1/databases/drawings").status_code == 409


def test_clip_retrieval_clients_are_answered(alice: Client) -> None:
    basic = {"authorization": "Basic " + base64.b64encode(f":{alice.key}".encode()).decode()}
    names = alice.http.post("/indices-list", headers=basic).json()
    assert "drawings" in names
    body = {
        "text": "a red circle", "modality": "image", "num_images": 5, "num_result_ids": 5, "indice_name": "drawings",
        "use_safety_model": False, "aesthetic_score": 9, "aesthetic_weight": 0.5, "deduplicate": True,
    }  # fmt: skip
    found = alice.http.post("/knn-service", headers=basic, content=json.dumps(body)).json()
    assert len(found) == 5 and {"id", "similarity", "caption", "url"} <= set(found[0])
    ids = {"ids": [row["id"] for row in found], "indice_name": "drawings"}
    known = alice.http.post("/metadata", headers=basic, json=ids).json()
    assert [row["id"] for row in known] == ids["ids"] and known[0]["metadata"]["caption"] == found[0]["caption"]


def test_every_answer_has_a_request_id_and_the_audit_log_has_it_too(alice: Client) -> None:
    assert alice.http.get("/healthz").headers["x-request-id"]
    assert alice.http.get("/healthz", headers={"x-request-id": "bad id\t"}).headers["x-request-id"] != "bad id\t"
    made = alice.http.post("/v1/keys", headers={**alice.headers, "x-request-id": "abc-1"}, json={"scopes": ["read"]})
    assert made.headers["x-request-id"] == "abc-1"
    assert alice.get("/v1/audit").json()["data"][0]["request_id"] == "abc-1"
    assert made.json()["key"] not in alice.get("/v1/keys").text


def test_an_answer_says_where_its_time_went(alice: Client) -> None:
    answers = {
        "find sample write": alice.paint(),
        "find": alice.post("/v1/databases/drawings/search", json={"text": "a red circle"}),
        "": alice.get("/v1/models"),
    }
    for names, answer in answers.items():
        timing = [part.split(";dur=") for part in answer.headers["server-timing"].split(", ")]
        assert [name for name, _ in timing] == [*names.split(), "total"]
        *parts, total = (float(milliseconds) for _, milliseconds in timing)
        assert all(part > 0.1 for part in parts) and sum(parts) <= total + 1


def test_a_body_that_is_too_large_is_refused_while_it_comes(alice: Client) -> None:
    answer = alice.post("/v1/images/generations", content=b" " * 4_000_000)
    assert answer.status_code == 413


def test_a_client_that_leaves_frees_the_sampler(service: Service, alice: Client) -> None:
    async def leave() -> None:
        from remembrandt.serving.http.images import _check, _make
        from remembrandt.serving.http.services import Caller
        from remembrandt.serving.types import GenerationBody

        served = service.client.app.state.services  # type: ignore[attr-defined]
        principal = await served.principal(alice.key)
        caller = Caller(principal, "leaving", RequestParts())
        body = GenerationBody(prompt="a circle", n=4, steps=900, stream=True, partial_images=1)
        events = _make(await _check(body, served, caller), served, caller)
        await anext(events)
        await events.aclose()

    before = alice.get("/v1/usage").json()["images_today"]
    asyncio.run(leave())
    start = time.monotonic()
    assert alice.paint().status_code == 200
    assert time.monotonic() - start < 5
    assert alice.get("/v1/usage").json()["images_today"] == before + 1


def finished(client: Client, database: str, job: str) -> dict[str, Any]:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        found: dict[str, Any] = client.get(f"/v1/databases/{database}/jobs/{job}").json()
        if found["state"] in ("succeeded", "failed"):
            assert found["state"] == "succeeded", found
            return found
        time.sleep(0.5)
    raise AssertionError(f"job {job} did not end: {found}")
