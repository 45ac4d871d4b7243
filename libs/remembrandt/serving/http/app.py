"""The application: routes over services, with everything around a request."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.responses import Response
from starlette.types import Scope

from remembrandt import __version__
from remembrandt.errors import RemembrandtError
from remembrandt.serving.accounts import Accounts
from remembrandt.serving.accounts.sql import now
from remembrandt.serving.backend import Backend
from remembrandt.serving.config import ServiceConfig
from remembrandt.serving.http import account, clip_retrieval, databases, images
from remembrandt.serving.http.errors import add_error_handlers
from remembrandt.serving.http.middleware import RequestScope, log_as
from remembrandt.serving.http.services import Served, Services, no_nul
from remembrandt.serving.telemetry import trace_to
from remembrandt.serving.types import ErrorAnswer
from remembrandt.storage import open_store

_SWEEP_SECONDS = 3600
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 409, 413, 422, 429, 503, 504)
}
# Captions and file names come from strangers: even if one got into the page as markup, it could run and send nothing.
_PAGE_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
health = APIRouter(tags=["health"])


def create_app(config: ServiceConfig, backend: Backend, accounts: Accounts, gallery: Path | None = None) -> FastAPI:
    """The HTTP API.

    Args:
        gallery: folder of the web page, served at `/`; None: no page.
    """
    log_as(config.telemetry.log_format)
    trace_to(config.telemetry, "ingress")
    served = Services(config, backend, accounts)
    _ = served.models, served.provenance, served.signer  # what is wrong with them is found at the start

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(served))
        yield
        sweeping.cancel()
        served.close()

    app = FastAPI(
        title="Remembrandt",
        version=__version__,
        description="Pictures from what is retrieved: OpenAI's images API, with databases of your own.",
        lifespan=lifespan,
        responses=_ERRORS,
        dependencies=[Depends(no_nul)],
        # Starlette's own limits would come before ours. One file more, so that ours say what is wrong.
        form_limits={"max_files": config.uploads.max_images + 1, "max_part_size": config.uploads.max_request_bytes},
        openapi_tags=[{"name": name} for name in ("images", "databases", "account", "clip-retrieval", "health")],
    )
    app.state.services = served
    add_error_handlers(app)
    for router in (health, images.router, databases.router, account.router, clip_retrieval.router):
        app.include_router(router)
    if gallery is not None:
        app.mount("/", GalleryFiles(directory=gallery, html=True), name="gallery")
    app.add_middleware(RequestScope, max_body=config.uploads.max_request_bytes)
    return app


class GalleryFiles(StaticFiles):
    """The web page, which loads nothing from elsewhere."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """As `StaticFiles`, with a policy. Browsers ask whether a file has changed, so that all are of one release."""
        response = await super().get_response(path, scope)
        response.headers["content-security-policy"] = _PAGE_POLICY
        response.headers["cache-control"] = "no-cache"
        return response


@health.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether this process runs."""
    return {"status": "ok"}


@health.get("/readyz", responses={503: {"model": ErrorAnswer}})
async def readyz(served: Served) -> JSONResponse:
    """Whether pictures can be made: accounts, retrieval and samplers answer."""
    try:
        await asyncio.to_thread(served.accounts.secret, "urls")
        ready = await served.backend.ready()
    except RemembrandtError:
        ready = False
    return JSONResponse({"status": "ready" if ready else "starting"}, 200 if ready else 503)


async def _sweep(served: Services) -> None:
    """Removes pictures that are older than they are kept."""
    while True:
        with contextlib.suppress(RemembrandtError):
            await asyncio.to_thread(remove_old_pictures, served.config)
        await asyncio.sleep(_SWEEP_SECONDS)


def remove_old_pictures(config: ServiceConfig) -> int:
    """Removes whole days of pictures that have ended; returns how many days."""
    last = f"{now() - timedelta(days=config.image_days + 1):%Y%m%d}"
    store, removed = open_store(config.storage).child("images"), 0
    for tenant in store.folders(""):
        for day in store.child(tenant).folders(""):
            if day < last:
                store.child(tenant, day).delete_tree("")
                removed += 1
    return removed
