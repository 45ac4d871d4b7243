"""Pictures: made, streamed, and fetched again."""

import asyncio
import base64
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse
from PIL import Image

from remembrandt.errors import ConfigError, RemembrandtError
from remembrandt.generation.records import NeighborRecord, Record, to_png
from remembrandt.generation.requests import DatabaseRef
from remembrandt.serving.accounts import DatabaseEntry
from remembrandt.serving.accounts.sql import now
from remembrandt.serving.backend import Partial
from remembrandt.serving.errors import NotFoundError
from remembrandt.serving.http.errors import answer_of
from remembrandt.serving.http.leases import leased
from remembrandt.serving.http.services import Caller, Maker, Served, Services, ref_of, tenant_of_picture
from remembrandt.serving.metrics import images_made
from remembrandt.serving.models import ServedModel
from remembrandt.serving.painting import Drawing, Pixels
from remembrandt.serving.requests import choose_model, picture_requests
from remembrandt.serving.types import (
    GenerationAnswer,
    GenerationBody,
    ImageAnswer,
    ModelAnswer,
    ModelsAnswer,
    NeighborAnswer,
)
from remembrandt.storage import open_store

router = APIRouter(tags=["images"])
_ID = re.compile(r"img_(\d{8})_[0-9a-f]{20}")
_MARGIN_SECONDS = 30
_QUICK_VALUES = 4 * 64 * 64 * 3
"""So few values of pixels are a PNG (in two milliseconds) before another thread would have been woken."""


@dataclass(frozen=True)
class _Asked:
    """A request that was checked."""

    body: GenerationBody
    model: ServedModel
    entry: DatabaseEntry | None
    ref: DatabaseRef | None
    deadline: float


@router.get("/v1/models")
async def list_models(served: Served, caller: Maker) -> ModelsAnswer:
    """Models that pictures can be made with; the first one is the default."""
    return ModelsAnswer(
        data=[
            ModelAnswer(
                id=model.name,
                kind=model.config.kind,
                size=model.size,
                num_neighbors=model.num_neighbors,
                strategies=list(model.strategies),
                default_steps=model.config.steps,
                max_steps=model.config.max_steps,
                guidance=list(model.guidance),
            )
            for model in served.models.values()
        ]
    )


@router.post("/v1/images/generations", response_model=GenerationAnswer)
async def generate(body: GenerationBody, served: Served, caller: Maker) -> Any:
    """Makes pictures after what is retrieved for the prompt: OpenAI's request, with fields of ours.

    With `stream`, server-sent events: `image_generation.partial_image` and `image_generation.completed`.
    """
    asked = await _check(body, served, caller)
    if not body.stream:
        made: GenerationAnswer | None = None
        async with aclosing(_make(asked, served, caller)) as events:
            async for event in events:
                if isinstance(event, GenerationAnswer):
                    made = event
        assert made is not None
        # It is known to be one: FastAPI would validate it again, and a picture as base64 is long.
        return Response(made.model_dump_json(), media_type="application/json")
    # What is wrong with a request is found before the stream begins, so that it has a status of its own.
    events = _make(asked, served, caller)
    first = await anext(events)
    return StreamingResponse(_server_sent(events, first, asked), media_type="text/event-stream")


@router.get("/v1/images/{image_id}", responses={200: {"content": {"image/png": {}}}}, response_class=Response)
async def fetch_image(image_id: Annotated[str, Path(max_length=64)], request: Request, served: Served) -> Response:
    """A picture that was made with `response_format: url`, for as long as it is kept."""
    tenant_id = await tenant_of_picture(request, served)
    data = await asyncio.to_thread(_read_picture, served, tenant_id, image_id)
    return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


async def _check(body: GenerationBody, served: Services, caller: Caller) -> _Asked:
    model = choose_model(body, list(served.models.values()))
    if (body.n or 1) > served.config.max_images:
        raise ConfigError(f"n = {body.n} is too many: ask for at most {served.config.max_images} at once")
    needs_none = body.strategy == "none" and body.database is None
    entry = None if needs_none else await served.database(caller.tenant_id, body.database)
    if entry is not None:
        await served.check_rows(entry, [own.row for own in body.exemplars if own.row is not None])
    ref = None if entry is None else ref_of(entry, body.filters, tuple(body.without))
    deadline = min(body.timeout or served.config.deadline_seconds, served.config.deadline_seconds)
    return _Asked(body, model, entry, ref, deadline)


async def _make(asked: _Asked, served: Services, caller: Caller) -> AsyncGenerator[Partial | GenerationAnswer]:
    """Foreseen pictures, then the answer. Closing it early gives everything up, and the quota back."""
    start, name = time.monotonic(), asked.model.name
    parts = (asked.body, asked.model, asked.ref, served.config.uploads)
    brings_pictures = any(own.image is not None for own in asked.body.exemplars)
    if brings_pictures:
        requests = await served.pictures.run(caller.tenant_id, picture_requests, *parts)
    else:
        requests = picture_requests(*parts)
    lease_seconds = asked.deadline + _MARGIN_SECONDS
    async with leased(served.quotas, caller.principal, len(requests), lease_seconds) as lease:
        with caller.parts.part("find", model=name, pictures=len(requests)):
            found = await served.backend.retrieval.find(name, requests)
        await lease.taken()
        contexts = []
        for own in found:
            if isinstance(own, RemembrandtError):
                raise own
            contexts.append(own)
        left = asked.deadline - (time.monotonic() - start)
        drawings = [
            Drawing(request.model_copy(update=_without_pictures(request)), own.context)
            for request, own in zip(requests, contexts, strict=True)
        ]
        wanted = (asked.body.partial_images or 0) if asked.body.stream else 0
        pictures: list[Pixels] = []
        with caller.parts.part("sample", model=name, pictures=len(requests)):
            async with aclosing(served.backend.draw(name, drawings, max(left, 0.1), partials=wanted > 0)) as drawn:
                async for event in drawn:
                    if isinstance(event, Partial):
                        yield event
                    else:
                        pictures = event
        lease.give_back(painted=len(pictures))
        with caller.parts.part("write"):
            answer = await _answer(asked, served, caller, pictures, [own.record for own in contexts])
        yield answer
        images_made(caller.principal.tenant_name, name, len(pictures))


def _without_pictures(request: Any) -> dict[str, Any]:
    """A sampler needs seeds and settings, not what the client sent."""
    if hasattr(request, "pairs"):
        return {"pairs": (), "ids": (), "retrieval": "bm25", "num_neighbors": 0, "database": None}
    return {"image": None, "exemplar_images": (), "database": None}


async def _answer(
    asked: _Asked, served: Services, caller: Caller, pictures: Sequence[Pixels], records: Sequence[Record]
) -> GenerationAnswer:
    body = asked.body
    as_url = body.response_format == "url" and not body.stream

    def finish(pixels: Pixels, record: Record) -> ImageAnswer:
        data = served.provenance.encode(Image.fromarray(pixels), record)
        neighbors = [
            neighbor_answer(served, caller.tenant_id, asked.entry, record.version, own) for own in record.neighbors
        ]
        plain = record.to_json()
        if not as_url:
            encoded = base64.b64encode(data).decode()
            return ImageAnswer(b64_json=encoded, seed=record.seed, neighbors=neighbors, record=plain)
        image_id = f"img_{now():%Y%m%d}_{secrets.token_hex(10)}"
        open_store(served.config.storage).write(_place(caller.tenant_id, image_id), data)
        url = served.signer.sign(f"/v1/images/{image_id}", tenant=caller.tenant_id)
        return ImageAnswer(url=served.base_url + url, seed=record.seed, neighbors=neighbors, record=plain)

    pairs = list(zip(pictures, records, strict=True))
    is_quick = not as_url and served.config.provenance is None and sum(own.size for own in pictures) <= _QUICK_VALUES
    if is_quick:
        made = [finish(*pair) for pair in pairs]
    else:
        made = await asyncio.gather(*(asyncio.to_thread(finish, *pair) for pair in pairs))
    return GenerationAnswer(
        created=int(time.time()),
        data=made,
        model=asked.model.name,
        database=None if asked.entry is None else asked.entry.name,
        version=records[0].version if records else None,
        size=asked.model.size,
    )


def neighbor_answer(
    served: Services, tenant_id: str, entry: DatabaseEntry | None, version: str | None, own: NeighborRecord
) -> NeighborAnswer:
    """A row, with a URL that shows it."""
    return NeighborAnswer(
        row=own.id,
        score=own.score,
        key=own.key,
        caption=own.caption,
        licence=own.licence,
        fields=dict(own.fields or {}),
        thumbnail_url=thumbnail_url(served, tenant_id, entry, version, own),
    )


def thumbnail_url(
    served: Services, tenant_id: str, entry: DatabaseEntry | None, version: str | None, own: NeighborRecord
) -> str | None:
    """Opens a row's picture without a key; None for what is no row."""
    if entry is None or own.id is None:
        return None
    path = f"/v1/databases/{entry.id}/rows/{own.id}/image"
    return served.base_url + served.signer.sign(path, tenant=tenant_id, version=version, size=256)


async def _server_sent(
    events: AsyncGenerator[Partial | GenerationAnswer], first: Partial | GenerationAnswer, asked: _Asked
) -> AsyncIterator[str]:
    """OpenAI's events. A failure after the beginning is an event too."""
    sent: dict[int, int] = {}
    wanted = asked.body.partial_images or 0
    try:
        async with aclosing(events):
            event: Partial | GenerationAnswer | None = first
            while event is not None:
                for name, values in _events_of(event, asked, sent, wanted):
                    yield f"event: {name}\ndata: {json.dumps({'type': name, **values})}\n\n"
                event = await anext(events, None)
    except Exception as error:  # noqa: BLE001 - the status has been sent: what went wrong is said in the stream
        yield f"event: error\ndata: {answer_of(error)[1].model_dump_json()}\n\n"


def _events_of(
    event: Partial | GenerationAnswer, asked: _Asked, sent: dict[int, int], wanted: int
) -> list[tuple[str, dict[str, Any]]]:
    common = {"created_at": int(time.time()), "size": asked.model.size, "output_format": "png"}
    common |= {"quality": "auto", "background": "opaque"}
    if isinstance(event, Partial):
        number = sent.get(event.number, 0)
        if number >= wanted:
            return []
        sent[event.number] = number + 1
        values = {"b64_json": _png(event.pixels), "partial_image_index": number, "index": event.number}
        return [("image_generation.partial_image", {**common, **values})]
    usage = {"total_tokens": 0, "input_tokens": 0, "output_tokens": 0}
    usage_details = {"input_tokens_details": {"text_tokens": 0, "image_tokens": 0}}
    whole = event.model_dump(exclude={"data", "created"})
    return [
        (
            "image_generation.completed",
            {**common, **whole, **image.model_dump(), "index": number, "usage": {**usage, **usage_details}},
        )
        for number, image in enumerate(event.data)
    ]


def _png(pixels: Pixels) -> str:
    return base64.b64encode(to_png(Image.fromarray(pixels))).decode()


def _place(tenant_id: str, image_id: str) -> str:
    return f"images/{tenant_id}/{image_id[4:12]}/{image_id}.png"


def _read_picture(served: Services, tenant_id: str, image_id: str) -> bytes:
    store = open_store(served.config.storage)
    if not _ID.fullmatch(image_id) or not store.exists(_place(tenant_id, image_id)):
        raise NotFoundError(f"there is no image '{image_id}'")
    return store.read(_place(tenant_id, image_id))
