"""The service on Ray Serve: an ingress, and beside it or within, retrieval and one sampler a model.

What a replica answers a client's mistake with is a value, not an exception: it is no failure of the replica.
"""

import asyncio
import shlex
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import ray
from fastapi import FastAPI
from ray import serve
from ray.dashboard.modules.job.common import JobStatus
from ray.exceptions import RayActorError
from ray.job_submission import JobSubmissionClient
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from remembrandt.allocation import OWN_ARENAS
from remembrandt.data.decode import DecodeError
from remembrandt.distributed import plain_error
from remembrandt.errors import RemembrandtError, ServiceError
from remembrandt.generation.requests import DatabaseRef
from remembrandt.serving.accounts import Accounts
from remembrandt.serving.backend import BuildFate, Drawn, open_studio, service_json, stream
from remembrandt.serving.coalescing import Coalescer
from remembrandt.serving.config import ServiceConfig, parse_service
from remembrandt.serving.errors import TooManyRequestsError, UploadError
from remembrandt.serving.http import create_app
from remembrandt.serving.painting import Drawing, Pixels
from remembrandt.serving.retrieval import DatabaseFacts, Found, ModelRequest, Query, Rows
from remembrandt.serving.retriever import SEARCHES, LocalRetriever, Retriever, plain
from remembrandt.serving.telemetry import trace_to

_ATTEMPTS = 3
_DRAIN_MARGIN_SECONDS = 10
_RETRY_SECONDS = 2
# Ray's client has one exception for every status.
_NO_SUCH_JOB = "Request failed with status code 404"
Handle = DeploymentHandle[Any]


@serve.deployment(name="Retrieval")
class RetrievalDeployment:
    """`Retrieval` in replicas: each multiplexes databases, and searches together what many clients ask for."""

    def __init__(self, config: dict[str, Any]) -> None:
        service = parse_service(config)
        trace_to(service.telemetry, "retrieval")
        self._retrieval = LocalRetriever(service)
        self._retrieval.warm()

    async def find(self, model: str, requests: Sequence[ModelRequest]) -> list[Found | RemembrandtError]:
        """As `Retriever.find`."""
        return await self._retrieval.find(model, requests)

    async def search(self, queries: list[Query]) -> list[Rows | RemembrandtError]:
        """As `LocalRetriever.search_each`."""
        return await self._retrieval.search_each(queries)

    async def read(self, what: str, *arguments: Any) -> Any:
        """`rows`, `image` or `facts` of `Retriever`."""
        assert what in ("rows", "image", "facts")
        try:
            return await getattr(self._retrieval, what)(*arguments)
        except (RemembrandtError, DecodeError) as error:
            return _as_value(error)


@serve.deployment
class SamplerDeployment:
    """A `Studio` in replicas."""

    def __init__(self, config: dict[str, Any], model: str) -> None:
        service = parse_service(config)
        trace_to(service.telemetry, f"sampler-{model}")
        self._studio = open_studio(model, service.models[model])

    async def draw(
        self, drawings: Sequence[Drawing], deadline_seconds: float
    ) -> AsyncGenerator[Drawn | RemembrandtError]:
        """As `Backend.draw`, with what pictures are foreseen to be."""
        try:
            async for drawn in stream(self._studio, drawings, deadline_seconds, partials=True):
                yield drawn
        except RemembrandtError as error:
            yield _as_value(error)

    async def paint(self, drawings: Sequence[Drawing], deadline_seconds: float) -> list[Pixels] | RemembrandtError:
        """As `Studio.draw`."""
        try:
            return await self._studio.draw(drawings, deadline_seconds)
        except RemembrandtError as error:
            return _as_value(error)

    async def ready(self) -> bool:
        """Whether it has loaded."""
        return True


@serve.deployment(name="Ingress")
@serve.ingress()
class IngressDeployment:
    """The HTTP API in replicas."""

    def __init__(
        self, config: dict[str, Any], retrieval: Handle | None, samplers: dict[str, Handle], gallery: str | None
    ) -> None:
        self._config = parse_service(config)
        self._backend = ServeBackend(self._config, _retriever(self._config, retrieval), samplers)
        self._gallery = None if gallery is None else Path(gallery)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Serve asks for after the constructor."""
        return create_app(self._config, self._backend, Accounts(self._config.accounts_url), self._gallery)


class RemoteRetriever:
    """A `Retriever` of other replicas. Where one dies in mid-request, another is asked."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._searches: Coalescer[Query, Rows | RemembrandtError] = Coalescer(self._search_all, SEARCHES)

    async def find(self, model: str, requests: Sequence[ModelRequest]) -> list[Found | RemembrandtError]:
        """As the protocol says."""
        return cast(list[Found | RemembrandtError], await self._ask(self._handle.find, model, list(requests)))

    async def search(self, query: Query) -> Rows:
        """As the protocol says: those that come while one call is under way go together in the next."""
        return plain(await self._searches.submit(query))

    async def rows(self, ref: DatabaseRef, ids: Sequence[int]) -> Rows:
        """As the protocol says."""
        return cast(Rows, await self._read("rows", ref, list(ids)))

    async def image(self, ref: DatabaseRef, row: int, size: int | None) -> bytes:
        """As the protocol says."""
        return cast(bytes, await self._read("image", ref, row, size))

    async def facts(self, ref: DatabaseRef) -> DatabaseFacts:
        """As the protocol says."""
        return cast(DatabaseFacts, await self._read("facts", ref))

    async def _search_all(self, queries: list[Query]) -> list[Rows | RemembrandtError]:
        return cast(list[Rows | RemembrandtError], await self._ask(self._handle.search, queries))

    async def _read(self, what: str, *arguments: Any) -> Any:
        return plain(await self._ask(self._handle.read, what, *arguments))

    async def _ask(self, method: Any, *arguments: Any) -> Any:
        for attempt in range(_ATTEMPTS):
            try:
                return await method.remote(*arguments)
            except BackPressureError:
                raise _busy() from None
            except (DeploymentUnavailableError, RayActorError, ReplicaUnavailableError) as error:
                if attempt + 1 == _ATTEMPTS:
                    raise _unavailable("retrieval") from error
            except ray.exceptions.RayTaskError as error:
                raise plain_error(error) from error
        raise AssertionError


def _retriever(config: ServiceConfig, replicas: Handle | None) -> Retriever:
    """Of those replicas; without any, of this process."""
    if replicas is not None:
        return RemoteRetriever(replicas)
    own = LocalRetriever(config, alone=bool(config.drawn_within))
    own.warm()
    return own


class ServeBackend:
    """A `Backend` over deployment handles. Where a sampler dies in mid-request, another is asked, by the same seed.

    Models without replicas are drawn with in this process.
    """

    def __init__(self, config: ServiceConfig, retrieval: Retriever, samplers: dict[str, Handle]) -> None:
        self._config, self.retrieval = config, retrieval
        self._streams = {name: handle.options(stream=True) for name, handle in samplers.items()}
        self._samplers = samplers
        self._studios = {name: open_studio(name, model) for name, model in config.drawn_within.items()}

    async def draw(
        self, model: str, drawings: Sequence[Drawing], deadline_seconds: float, *, partials: bool
    ) -> AsyncGenerator[Drawn]:
        """As the protocol says."""
        if model in self._studios:
            async with aclosing(stream(self._studios[model], drawings, deadline_seconds, partials=partials)) as own:
                async for event in own:
                    yield event
            return
        for attempt in range(_ATTEMPTS):
            try:
                async with aclosing(self._drawn(model, list(drawings), deadline_seconds, partials)) as answers:
                    async for drawn in answers:
                        yield cast(Drawn, plain(drawn))
                return
            except BackPressureError:
                raise _busy() from None
            except (DeploymentUnavailableError, RayActorError, ReplicaUnavailableError) as error:
                if attempt + 1 == _ATTEMPTS:
                    raise _unavailable(model) from error

    async def start_build(self, job_id: str) -> None:
        """As the protocol says: a Ray job, so that it outlives this replica."""
        python = shlex.quote(sys.executable)
        command = f"{python} -m remembrandt.serving.building {job_id} {shlex.quote(service_json(self._config))}"
        try:
            await asyncio.to_thread(lambda: _jobs().submit_job(entrypoint=command, submission_id=job_id))
        except (RuntimeError, OSError) as error:
            raise ServiceError(f"Ray's job server does not take the build: {error}") from error

    async def build_fate(self, job_id: str) -> BuildFate:
        """As the protocol says. A job server that does not answer, or answers in trouble, says nothing of the build."""
        try:
            status = await asyncio.to_thread(lambda: _jobs().get_job_status(job_id))
        except RuntimeError as error:
            return "unknown" if str(error).startswith(_NO_SUCH_JOB) else "under way"
        except OSError:
            return "under way"
        return "ended" if status in (JobStatus.FAILED, JobStatus.STOPPED) else "under way"

    async def ready(self) -> bool:
        """As the protocol says."""
        if self._config.shared:
            await self.retrieval.facts(next(DatabaseRef(uri=own.uri) for own in self._config.shared_databases.values()))
        for name, handle in self._samplers.items():
            try:
                await handle.ready.remote()
            except (BackPressureError, RayActorError, ReplicaUnavailableError):
                continue  # busy or being replaced is not down
            except DeploymentUnavailableError:
                raise _unavailable(name) from None
        return True

    async def _drawn(
        self, model: str, drawings: list[Drawing], deadline_seconds: float, partials: bool
    ) -> AsyncGenerator[Drawn | RemembrandtError]:
        """What one replica answers. A stream costs more than one answer does, and only what is foreseen needs it."""
        handle: Any = self._streams[model].draw if partials else self._samplers[model].paint
        answer = handle.remote(drawings, deadline_seconds)
        try:
            if partials:
                async for drawn in answer:
                    yield drawn
                return
            pictures = await answer
        except (asyncio.CancelledError, GeneratorExit):  # whoever asked has left
            answer.cancel()
            raise
        yield pictures


def application(config: ServiceConfig, gallery: Path | None = None) -> serve.Application:
    """All deployments, bound to each other; `gallery`: folder of the web page."""
    args = config.model_dump(mode="json")
    # A replica that is replaced finishes what it was asked: nobody notices an upgrade.
    common = {
        "graceful_shutdown_timeout_s": config.deadline_seconds + _DRAIN_MARGIN_SECONDS,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=_RETRY_SECONDS),
    }
    retrieval = None
    if config.retrieval is not None:
        retrieval = RetrievalDeployment.options(**common, **config.retrieval.options()).bind(args)  # type: ignore[attr-defined]
    samplers = {
        name: SamplerDeployment.options(  # type: ignore[attr-defined]
            name=f"Sampler-{name}", **common, **model.replicas.options(OWN_ARENAS)
        ).bind(args, name)
        for name, model in config.models.items()
        if model.replicas is not None
    }
    own = config.ingress.options(OWN_ARENAS if config.drawn_within else None)
    ingress = IngressDeployment.options(**common, **own)  # type: ignore[attr-defined]
    return cast(serve.Application, ingress.bind(args, retrieval, samplers, None if gallery is None else str(gallery)))


def _jobs() -> JobSubmissionClient:
    return JobSubmissionClient(ray.get_runtime_context().gcs_address)


def _as_value(error: BaseException) -> RemembrandtError:
    if isinstance(error, RemembrandtError):
        return error
    return UploadError(f"the image is not accepted: {error}")


def _busy() -> TooManyRequestsError:
    return TooManyRequestsError(
        "more is asked for than can be made now: try again in a moment", retry_after=_RETRY_SECONDS
    )


def _unavailable(what: str) -> ServiceError:
    return ServiceError(f"no replica of {what} answers")
