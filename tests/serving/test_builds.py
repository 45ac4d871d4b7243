"""Builds of tenants' databases: when they count as failed, and what is left of those that could not start."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.job.common import JobStatus

from remembrandt.serving import deployments
from remembrandt.serving.accounts.sql import now
from remembrandt.serving.accounts.tables import JobRow
from remembrandt.serving.deployments import ServeBackend
from tests.serving.test_mistakes import files
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
