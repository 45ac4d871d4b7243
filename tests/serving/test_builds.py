"""Builds of tenants' databases: when they count as failed, and what is left of those that could not start."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.job.common import JobStatus

from remembrandt.errors import ServiceError, SourceError, StorageError
from remembrandt.serving import building, deployments
from remembrandt.serving.accounts import TenantDatabases, Tenants
from remembrandt.serving.accounts.sql import now
from remembrandt.serving.accounts.tables import JobRow
from remembrandt.serving.deployments import ServeBackend
from remembrandt.serving.errors import TooManyRequestsError
from remembrandt.serving.retrieval import DatabaseFacts
from remembrandt.serving.uploads import UploadedImage
from remembrandt.storage import Store
from tests.serving.test_mistakes import files, png
from tests.support.service import Client, Service

Quiet = Callable[..., Service]


def upload(alice: Client, name: str = "mine") -> Any:
    return alice.post("/v1/databases/upload", data={"name": name}, files=files())


def age(service: Service, job_id: str, seconds: float) -> None:
    with service.accounts.write() as session:
        session.get_one(JobRow, job_id).created_at = now() - timedelta(seconds=seconds)


def staged(service: Service) -> list[Path]:
    return [path for path in Path(service.config.storage).rglob("uploads/**/*") if path.is_file()]


@pytest.mark.parametrize(
    ("fate", "seconds", "state"),
    [
        ("under way", 1, "queued"),
        ("under way", 3600, "queued"),
        ("unknown", 1, "queued"),
        ("unknown", 3600, "failed"),
        ("ended", 1, "failed"),
    ],
)
def test_a_build_has_failed_if_it_ended_or_never_began(quiet: Quiet, fate: str, seconds: float, state: str) -> None:
    service: Any = quiet()
    alice = service.tenant("alice")
    job = upload(alice).json()["id"]
    service.backend.fate = fate
    age(service, job, seconds)
    (found,) = alice.get("/v1/databases/mine/jobs").json()
    assert found["state"] == state
    assert bool(staged(service)) == (state == "queued")


@pytest.mark.parametrize(
    ("answer", "fate"),
    [
        (RuntimeError("Request failed with status code 404: Job does not exist."), "unknown"),
        (RuntimeError("Request failed with status code 503: status code 404."), "under way"),
        (RuntimeError("Request failed with status code 500: the GCS restarts."), "under way"),
        (ConnectionError("refused"), "under way"),
        (JobStatus.PENDING, "under way"),
        (JobStatus.RUNNING, "under way"),
        (JobStatus.FAILED, "ended"),
        (JobStatus.STOPPED, "ended"),
    ],
    ids=str,
)
def test_only_what_the_job_server_says_of_a_build_counts(
    monkeypatch: pytest.MonkeyPatch, answer: Exception | JobStatus, fate: str
) -> None:
    class Jobs:
        def get_job_status(self, job_id: str) -> JobStatus:
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(deployments, "_jobs", Jobs)
    backend = ServeBackend.__new__(ServeBackend)
    assert asyncio.run(backend.build_fate("job_1")) == fate


def used(service: Service, name: str = "alice") -> tuple[int, int]:
    tenant = Tenants(service.accounts).find(name)
    return tenant.used_rows, tenant.used_bytes


def folder_of(tmp_path: Path, count: int) -> str:
    (tmp_path / "source").mkdir()
    for number in range(count):
        (tmp_path / "source" / f"{number}.png").write_bytes(png())
    return str(tmp_path / "source")


def test_a_build_from_a_uri_takes_what_it_finds_there_from_the_quota(
    quiet: Quiet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = folder_of(tmp_path, 8)
    service: Any = quiet(uploads={"uri_prefixes": [str(tmp_path)]})
    alice = service.tenant("alice", max_rows=10)
    reserved: list[tuple[int, int]] = []

    def build(config: Any) -> None:
        reserved.append(used(service))
        raise SourceError("no")

    monkeypatch.setattr(building, "build_database", build)
    for name, rows in (("mine", 8), ("again", 8)):
        assert alice.post("/v1/databases", json={"name": name, "uri": uri}).status_code == 201
        assert used(service)[0] == 1
        with pytest.raises(SourceError):
            building.run(service.backend.builds[-1], service.config)
        assert reserved[-1][0] == rows and reserved[-1][1] > 8 * len(png()), "it is held while the build runs"
        assert used(service) == (0, 0), "and given back when it fails"

    monkeypatch.setattr(building, "build_database", lambda config: pytest.fail("it began"))
    Tenants(service.accounts).change("alice", max_rows=7)
    alice.post("/v1/databases", json={"name": "more", "uri": uri})
    with pytest.raises(TooManyRequestsError, match="quota"):
        building.run(service.backend.builds[-1], service.config)
    (job,) = alice.get("/v1/databases/more/jobs").json()
    assert job["state"] == "failed" and "8 rows" in job["message"]


def test_a_tenant_that_has_all_of_its_rows_gets_no_build_from_a_uri(quiet: Quiet, tmp_path: Path) -> None:
    service = quiet(uploads={"uri_prefixes": [str(tmp_path)]})
    alice, body = service.tenant("alice", max_rows=0), {"name": "mine", "uri": folder_of(tmp_path, 1)}
    assert [alice.post("/v1/databases", json=body).status_code for _ in range(2)] == [429, 429]


def test_a_version_without_some_rows_takes_the_space_of_the_live_one(quiet: Quiet) -> None:
    service: Any = quiet()
    alice = service.tenant("alice", max_bytes=100_000)
    upload(alice)
    TenantDatabases(service.accounts).finish_job(service.backend.builds[-1], "v1", 5, 60_000)
    service.backend.facts = DatabaseFacts("v1", 5, 60_000, (), False, False, None)
    answer = alice.post("/v1/databases/mine/rows/delete", json={"ids": [0]})
    assert answer.status_code == 429 and "60,000 bytes" in answer.text
    Tenants(service.accounts).change("alice", max_bytes=120_000)
    assert alice.post("/v1/databases/mine/rows/delete", json={"ids": [0]}).status_code == 202
    assert used(service) == (5, 120_000)


@pytest.mark.parametrize("by", ["upload", "uri"])
def test_a_build_that_cannot_be_submitted_leaves_its_name_free(quiet: Quiet, tmp_path: Path, by: str) -> None:
    service: Any = quiet(uploads={"uri_prefixes": [str(tmp_path)]})
    alice = service.tenant("alice")
    body = {"name": "mine", "uri": folder_of(tmp_path, 1)}
    service.backend.refuses = ServiceError("the job server is away")
    answers = [alice.post("/v1/databases", json=body) if by == "uri" else upload(alice) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert used(service) == (0, 0) and not staged(service)
    assert alice.get("/v1/databases").json()["data"] == []


def test_an_upload_that_cannot_be_written_whole_is_removed(quiet: Quiet, monkeypatch: pytest.MonkeyPatch) -> None:
    service = quiet()

    def stage(images: Iterator[UploadedImage], store: Store) -> tuple[int, int]:
        store.write("first.png", next(images).data)
        raise StorageError("the disk is full")

    monkeypatch.setattr("remembrandt.serving.http.databases.stage", stage)
    assert upload(service.tenant("alice")).status_code == 503
    assert not staged(service)
