"""What stands behind the HTTP API. `LocalBackend` is all of it in this process; Ray Serve has its own."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

from remembrandt.serving.config import ModelConfig, ServiceConfig
from remembrandt.serving.painting import Drawing, Pixels, Studio, open_painter
from remembrandt.serving.retriever import LocalRetriever, Retriever


@dataclass(frozen=True)
class Partial:
    """What a picture of a request is foreseen to be."""

    number: int
    pixels: Pixels


Drawn = Partial | list[Pixels]
"""Foreseen pictures, and at the end all finished ones."""
BuildFate = Literal["under way", "ended", "unknown"]
"""`unknown`: nobody has heard of it. So it is, too, until it has been started."""


class Backend(Protocol):
    """Retrieval, samplers and builds."""

    @property
    def retrieval(self) -> Retriever:
        """What is retrieved."""

    def draw(
        self, model: str, drawings: Sequence[Drawing], deadline_seconds: float, *, partials: bool
    ) -> AsyncGenerator[Drawn]:
        """As `Studio.draw`."""

    async def start_build(self, job_id: str) -> None:
        """Starts a build that is on record."""

    async def build_fate(self, job_id: str) -> BuildFate:
        """What has become of a build that is on record as open."""

    async def ready(self) -> bool:
        """Whether requests can be answered."""


class LocalBackend:
    """Everything in this process; builds in processes of their own."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self.retrieval = LocalRetriever(config, alone=True)
        self.studios = {name: open_studio(name, model) for name, model in config.models.items()}
        self._builds: dict[str, subprocess.Popen[bytes]] = {}

    async def draw(
        self, model: str, drawings: Sequence[Drawing], deadline_seconds: float, *, partials: bool
    ) -> AsyncGenerator[Drawn]:
        """As the protocol says."""
        async for drawn in stream(self.studios[model], drawings, deadline_seconds, partials=partials):
            yield drawn

    async def start_build(self, job_id: str) -> None:
        """As the protocol says."""
        command = [sys.executable, "-m", "remembrandt.serving.building", job_id, service_json(self._config)]
        self._builds[job_id] = await asyncio.to_thread(subprocess.Popen, command)

    async def build_fate(self, job_id: str) -> BuildFate:
        """As the protocol says."""
        process = self._builds.get(job_id)
        if process is None:
            return "unknown"
        return "under way" if process.poll() is None else "ended"

    async def ready(self) -> bool:
        """As the protocol says."""
        return True

    def close(self) -> None:
        """Ends threads and builds."""
        for studio in self.studios.values():
            studio.close()
        for process in self._builds.values():
            process.kill()
            process.wait()
        self.retrieval.close()


def open_studio(name: str, model: ModelConfig) -> Studio:
    """Loads a model to draw with."""
    return Studio(name, partial(open_painter, model), model.max_batch, model.batch_wait_seconds)


async def stream(
    studio: Studio, drawings: Sequence[Drawing], deadline_seconds: float, *, partials: bool
) -> AsyncGenerator[Drawn]:
    """What a studio foresees, then what it has drawn. Closing it early gives the pictures up."""
    foreseen: asyncio.Queue[Partial | None] = asyncio.Queue()
    on_partial = (lambda number, pixels: foreseen.put_nowait(Partial(number, pixels))) if partials else None
    drawing = asyncio.ensure_future(studio.draw(drawings, deadline_seconds, on_partial))
    drawing.add_done_callback(lambda _: foreseen.put_nowait(None))
    try:
        while (partial := await foreseen.get()) is not None:
            yield partial
        yield await drawing
    finally:
        drawing.cancel()


def service_json(config: ServiceConfig) -> str:
    """For a build's command line. A URL of PostgreSQL holds a password, so it comes by the environment alone."""
    secret = config.accounts is not None and not config.accounts.startswith("sqlite")
    return json.dumps(config.model_dump(mode="json", exclude={"accounts"} if secret else None))
