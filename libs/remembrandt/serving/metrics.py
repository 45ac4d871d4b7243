"""Prometheus metrics, by Ray's exporter: every replica's are gathered on its node, named `ray_remembrandt_…`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
_BATCHES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]

Stage = Literal["encode", "search", "read", "sample"]


@contextmanager
def timed(stage: Stage) -> Iterator[None]:
    """Measures a stage of a request's way."""
    start = time.perf_counter()
    try:
        yield
    finally:
        stage_done(stage, time.perf_counter() - start)


def stage_done(stage: Stage, seconds: float) -> None:
    """A stage of a request's way is behind it."""
    _stages().observe(seconds, tags={"stage": stage})


def request_done(route: str, status: int, tenant: str, seconds: float) -> None:
    """A request has been answered."""
    _requests().observe(seconds, tags={"route": route, "status": str(status), "tenant": tenant})


def batch_drawn(model: str, pictures: int) -> None:
    """A sampler has drawn a batch."""
    _batches().observe(pictures, tags={"model": model})


def queue_length(model: str, pictures: int) -> None:
    """Pictures that wait at a sampler."""
    _queues().set(pictures, tags={"model": model})


def images_made(tenant: str, model: str, images: int) -> None:
    """Pictures for a tenant."""
    _images().inc(images, tags={"tenant": tenant, "model": model})


def cache_used(name: str, hits: int, misses: int) -> None:
    """Look-ups in a cache since the last call."""
    if hits:
        _hits().inc(hits, tags={"cache": name})
    if misses:
        _misses().inc(misses, tags={"cache": name})


@cache
def _stages() -> Histogram:
    return Histogram("remembrandt_stage_seconds", "Time of one stage of a request.", _SECONDS, ("stage",))


@cache
def _requests() -> Histogram:
    return Histogram(
        "remembrandt_request_seconds", "Time of one HTTP request.", _SECONDS, ("route", "status", "tenant")
    )


@cache
def _batches() -> Histogram:
    return Histogram("remembrandt_batch_size", "Pictures that were drawn together.", _BATCHES, ("model",))


@cache
def _queues() -> Gauge:
    return Gauge("remembrandt_queue_length", "Pictures that wait at a sampler.", ("model",))


@cache
def _images() -> Counter:
    return Counter("remembrandt_images_total", "Pictures made.", ("tenant", "model"))


@cache
def _hits() -> Counter:
    return Counter("remembrandt_cache_hits_total", "Found in a cache.", ("cache",))


@cache
def _misses() -> Counter:
    return Counter("remembrandt_cache_misses_total", "Not found in a cache.", ("cache",))
