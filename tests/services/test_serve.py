"""The service on Ray Serve: an ordinary OpenAI client, replicas that die, queues that are full, clients that leave."""

import base64
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI
from PIL import Image
from ray import serve

from remembrandt.allocation import OWN_ARENAS
from remembrandt.serving.accounts import Accounts, Keys, Limits, Tenants
from services.app import build
from tests.support.processes import free_ports, wait_until
from tests.support.ray_cluster import RayCluster
from tests.support.serving import kill, replicas

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
SMALL = {"num_cpus": 0.05}


@dataclass(frozen=True)
class Running:
    url: str
    key: str

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=120, trust_env=False
        )

    @property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, http_client=self.http)


@pytest.fixture(scope="module")
def service_args(service_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two replicas of everything that is killed."""
    folder = tmp_path_factory.mktemp("serve")
    two = {**SMALL, "min": 2, "max": 2, "max_ongoing": 16, "max_queued": 32}
    model = {**service_values["models"]["rdm"], "replicas": two}
    return {
        **service_values,
        "models": {"rdm": model},
        "accounts": f"sqlite:///{folder}/accounts.db",
        "storage": str(folder / "storage"),
        "retrieval": two,
        "ingress": {**SMALL, "max_ongoing": 64},
        "uploads": {**service_values["uploads"], "max_image_bytes": 10_000_000, "max_request_bytes": 20_000_000},
    }


@pytest.fixture(scope="module")
def running(_session_ray_cluster: RayCluster, service_args: dict[str, Any]) -> Iterator[Running]:
    _session_ray_cluster.connect()
    (port,) = free_ports(1)
    # The nodes are of one machine: proxies on each of them would want the same port, and start over and over.
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(service_args), name="remembrandt", route_prefix="/")
    accounts = Accounts(service_args["accounts"])
    tenant = Tenants(accounts).create("alice", Limits(requests_per_minute=0, max_concurrent=1000))
    key = Keys(accounts).create(tenant.id, ["read", "generate", "write"]).secret
    yield Running(f"http://127.0.0.1:{port}", key)
    serve.shutdown()
    accounts.close()


def pixels(encoded: str | None) -> np.ndarray:
    assert encoded is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))).astype(int)


def test_an_openai_client_paints_from_the_cluster(running: Running) -> None:
    assert running.http.get("/readyz").json() == {"status": "ready"}
    made = running.openai.images.generate(prompt="a red circle", n=2, extra_body={"seed": 3})
    assert made.data is not None and [pixels(own.b64_json).shape for own in made.data] == [(16, 16, 3)] * 2
    found = running.http.post("/v1/databases/drawings/search", json={"text": "a red circle", "k": 5}).json()
    assert [row["row"] for row in found["rows"]][:4] == [row["row"] for row in made.data[0].neighbors]  # type: ignore[attr-defined]


def test_it_streams_what_pictures_will_be(running: Running) -> None:
    stream = running.openai.images.generate(
        prompt="a red circle", stream=True, partial_images=2, extra_body={"steps": 8}
    )
    kinds = [event.type for event in stream]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]


def test_a_mistake_is_the_clients_on_the_cluster_too(running: Running) -> None:
    answer = running.http.post("/v1/images/generations", json={"prompt": "x", "filters": {"colour": ["red"]}})
    assert answer.status_code == 400 and "cannot be filtered" in answer.json()["error"]["message"]


def test_threads_that_draw_do_not_share_what_they_allocate_from(running: Running) -> None:
    environments = [process.environ() for process in replicas("Sampler-rdm")]
    assert environments and all(own.items() >= OWN_ARENAS.items() for own in environments)


@pytest.mark.parametrize("draws", [False, True])
def test_on_one_machine_the_ingress_does_it_by_itself(
    running: Running, service_args: dict[str, Any], draws: bool
) -> None:
    inside = {**service_args, "retrieval": None}
    if draws:
        inside["models"] = {"rdm": {**service_args["models"]["rdm"], "replicas": None}}
    body = {"prompt": "a red circle", "seed": 5}
    wanted = running.http.post("/v1/images/generations", json=body).json()["data"][0]
    serve.run(build(inside), name="inside", route_prefix="/inside")
    try:
        assert set(serve.status().applications["inside"].deployments) == (
            {"Ingress"} if draws else {"Ingress", "Sampler-rdm"}
        )
        made = running.http.post("/inside/v1/images/generations", json=body).json()["data"][0]
        assert made["neighbors"] == wanted["neighbors"]
        np.testing.assert_allclose(pixels(made["b64_json"]), pixels(wanted["b64_json"]), atol=1)
        asked = {"image": base64.b64encode(b"no picture").decode(), "k": 3}
        refused = running.http.post("/inside/v1/databases/drawings/search", json=asked)
        assert refused.status_code == 400, refused.text
        with running.openai as client:
            stream = client.with_options(base_url=f"{running.url}/inside/v1").images.generate(
                prompt="a red circle", stream=True, partial_images=1, extra_body={"seed": 5}
            )
            kinds = [event.type for event in stream]
        assert kinds == ["image_generation.partial_image", "image_generation.completed"]
    finally:
        serve.delete("inside")


def test_a_large_picture_passes_between_deployments(running: Running) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1400, 1400, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format="PNG")
    assert len(file.getvalue()) > 5_000_000  # gRPC would take 4 MB by itself
    body = {"image": base64.b64encode(file.getvalue()).decode(), "k": 3}
    answer = running.http.post("/v1/databases/drawings/search", json=body)
    assert answer.status_code == 200 and len(answer.json()["rows"]) == 3, answer.text[:300]


@pytest.mark.parametrize("deployment", ["Sampler-rdm", "Retrieval"])
def test_a_replica_that_dies_in_mid_request_is_not_noticed(running: Running, deployment: str) -> None:
    wait_until(lambda: len(replicas(deployment)) >= 2, f"two replicas of {deployment}", 120)
    body = {"prompt": "a red circle", "steps": 60, "seed": 4}
    wanted = running.http.post("/v1/images/generations", json=body).json()["data"][0]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(running.http.post, "/v1/images/generations", json=body) for _ in range(8)]
        time.sleep(0.15)
        kill(replicas(deployment)[0])
        answers = [own.result() for own in asked]
    assert [own.status_code for own in answers] == [200] * 8, [own.text for own in answers if own.status_code != 200]
    for own in answers:
        np.testing.assert_allclose(pixels(own.json()["data"][0]["b64_json"]), pixels(wanted["b64_json"]), atol=1)


def test_more_than_can_be_made_is_told_to_come_back(running: Running) -> None:
    body = {"prompt": "a red circle", "steps": 40, "n": 4, "timeout": 60}
    with ThreadPoolExecutor(90) as pool:
        answers = list(pool.map(lambda _: running.http.post("/v1/images/generations", json=body), range(90)))
    refused = [own for own in answers if own.status_code == 429]
    strange = [own.text for own in answers if own.status_code not in (200, 429, 504)]
    assert not strange and refused, strange[:3]
    assert all(int(own.headers["retry-after"]) >= 1 for own in refused)
    assert running.http.post("/v1/images/generations", json={"prompt": "a"}).status_code == 200


@pytest.mark.parametrize("stream", [False, True], ids=["answer", "stream"])
def test_a_client_that_leaves_frees_its_place(running: Running, stream: bool) -> None:
    def four_pictures() -> float:
        start = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(running.http.post, "/v1/images/generations", json={"prompt": "a"}) for _ in range(4)]
            assert [own.result().status_code for own in asked] == [200] * 4
        return time.monotonic() - start

    four_pictures()
    undisturbed = max(four_pictures() for _ in range(3))
    body = {"prompt": "a", "n": 8, "steps": 999}  # some hundred times the work
    if stream:
        body |= {"stream": True, "partial_images": 3}
        with running.http as leaving, leaving.stream("POST", "/v1/images/generations", json=body) as answer:
            next(answer.iter_lines())
    else:
        with running.http as leaving, pytest.raises(httpx.ReadTimeout):
            leaving.post("/v1/images/generations", json=body, timeout=1)
    assert four_pictures() < 5 * undisturbed + 1


def test_the_configurations_are_ones_that_the_code_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml
    from ray.serve.schema import ServeDeploySchema

    from remembrandt.serving.config import parse_service

    monkeypatch.setenv("REMEMBRANDT_HOME", str(tmp_path))
    files = sorted(Path("services/configs").glob("*.yaml"))
    assert files
    for file in files:
        values = yaml.safe_load(file.read_text())
        schema = ServeDeploySchema.model_validate(values)
        assert schema.applications[0].import_path == "services.app:build"
        config = parse_service(values["applications"][0]["args"])
        assert "${" not in json.dumps(config.model_dump(mode="json"))
