"""What `clip-retrieval`'s ClipClient speaks, so that its users can point it here: `http://:<key>@host/knn-service`."""

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from remembrandt.serving.config import UploadConfig
from remembrandt.serving.errors import UploadError
from remembrandt.serving.fetch import fetch_image
from remembrandt.serving.http.images import thumbnail_url
from remembrandt.serving.http.services import Reader, Served, ref_of
from remembrandt.serving.retrieval import Query
from remembrandt.serving.types import KnnBody, MetadataBody
from remembrandt.serving.uploads import check_image, decode_base64

# ClipClient sends JSON without saying so.
router = APIRouter(tags=["clip-retrieval"], strict_content_type=False)


@router.post("/indices-list")
async def indices(served: Served, caller: Reader) -> list[str]:
    """Names of the databases that you may read."""
    own = await asyncio.to_thread(served.own_entries, caller.tenant_id)
    return [entry.name for entry in (*served.shared_entries(), *(entry for entry, is_there in own if is_there))]


@router.post("/knn-service", response_model=list[dict[str, Any]])
async def knn(body: KnnBody, served: Served, caller: Reader) -> Any:
    """Rows nearest to a text, a picture or an embedding."""
    entry = await served.database(caller.tenant_id, body.indice_name)
    image = None
    if body.image is not None:
        image = await served.pictures.run(caller.tenant_id, decode_base64, body.image, served.config.uploads)
    elif body.image_url is not None:
        image = await served.uploads.run(caller.tenant_id, _fetched, body.image_url, served.config.uploads)
    if image is None and body.text is None and body.embedding_input is None:
        raise UploadError("give `text`, `image`, `image_url` or `embedding_input`")
    embedding = None if body.embedding_input is None else tuple(body.embedding_input)
    text = body.text if image is None and embedding is None else None
    count = max(body.num_images, min(body.num_result_ids or 0, 1000))
    query = Query(ref_of(entry), count, text=text, image=image if embedding is None else None, embedding=embedding)
    with caller.parts.part("find"):
        found = await served.backend.retrieval.search(query)
    # A response of its own: FastAPI would look at every field of every row once more.
    return JSONResponse(
        [
            {
                "id": row.id,
                "similarity": row.score,
                "caption": row.caption,
                "url": thumbnail_url(served, caller.tenant_id, entry, found.version, row),
                "key": row.key,
                "licence": row.licence,
            }
            for row in found.rows
        ]
    )


@router.post("/metadata")
async def metadata(body: MetadataBody, served: Served, caller: Reader) -> list[dict[str, Any]]:
    """What is known of rows."""
    entry = await served.database(caller.tenant_id, body.indice_name)
    found = await served.backend.retrieval.rows(ref_of(entry), body.ids)
    return [
        {
            "id": row.id,
            "metadata": {"key": row.key, "caption": row.caption, "licence": row.licence, **(row.fields or {})},
        }
        for row in found.rows
    ]


def _fetched(url: str, config: UploadConfig) -> bytes:
    data = fetch_image(url, config)
    check_image(data, config)
    return data
