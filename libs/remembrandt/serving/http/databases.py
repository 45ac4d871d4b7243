"""Databases: listed, searched, made, changed, published and rolled back."""

import asyncio
import json
import secrets
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, File, Form, Path, Query, Request, Response, UploadFile

from remembrandt.configuration import nearest
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.maintenance import publish_version, rollback_version
from remembrandt.errors import VersionError
from remembrandt.serving.accounts import DatabaseEntry, JobEntry
from remembrandt.serving.accounts.sql import now
from remembrandt.serving.building import INDEX_BYTES_A_ROW, remove_staged
from remembrandt.serving.errors import ConflictError, NotFoundError, UploadError
from remembrandt.serving.fetch import check_uri
from remembrandt.serving.http.images import neighbor_answer
from remembrandt.serving.http.services import Caller, Reader, Served, Services, Writer, ref_of, tenant_of_picture
from remembrandt.serving.retrieval import Query as SearchQuery
from remembrandt.serving.types import (
    CreateDatabaseBody,
    DatabaseAnswer,
    DatabasesAnswer,
    DeleteRowsBody,
    JobAnswer,
    PublishedAnswer,
    RollbackBody,
    SearchAnswer,
    SearchBody,
    VersionAnswer,
    VersionsAnswer,
)
from remembrandt.serving.uploads import UploadedImage, decode_base64, is_unicode, read_archive, read_files, stage
from remembrandt.storage import open_store

router = APIRouter(prefix="/v1/databases", tags=["databases"])
Name = Annotated[str, Path(max_length=64, description="name or id")]
Images = Annotated[list[UploadFile], File(description="pictures")]
Archive = Annotated[UploadFile | None, File(description="a tar of pictures, with name.txt and name.json beside them")]
Captions = Annotated[str, Form(max_length=10_000_000, description="JSON list of one caption a picture")]
NewName = Annotated[str, Form(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
RowId = Annotated[int, Path(ge=0, le=2**62)]
_START_SECONDS = 60
"""In which a build that is on record has been started."""


@router.get("")
async def list_databases(served: Served, caller: Reader) -> DatabasesAnswer:
    """Databases that you may read: shared ones, then your own."""
    own = await asyncio.to_thread(served.own_entries, caller.tenant_id)
    entries = [*((entry, True) for entry in served.shared_entries()), *own]
    return DatabasesAnswer(data=list(await asyncio.gather(*(_describe(served, *entry) for entry in entries))))


@router.post("", status_code=201)
async def create_database(body: CreateDatabaseBody, served: Served, caller: Writer) -> DatabaseAnswer:
    """A database of the pictures at a URI, or a view of another one. A build starts; its job is in `…/jobs`."""
    if body.view_of is not None:
        base = await served.database(caller.tenant_id, body.view_of)
        ref = ref_of(base, body.where)
        if any(not values for values in ref.where.values()):
            raise UploadError("this view would have no rows: its `where` allows nothing that the database has")
        await _check_columns(served, base, body.where)
        entry = await asyncio.to_thread(
            served.databases.add,
            caller.tenant_id,
            body.name,
            _root(served, caller),
            uri=base.uri,
            view_of=base.name,
            where=ref.where,
        )
        await served.audit(caller, "database.create", entry.id, view_of=base.name)
        return await _describe(served, entry)
    uri = check_uri(body.uri or "", served.config.uploads.uri_prefixes)
    entry = await asyncio.to_thread(served.databases.add, caller.tenant_id, body.name, _root(served, caller))
    # A row at least; the build reserves the others when it has listed them, which may take long.
    await _first_build(served, caller, entry, {"source": uri}, 1, 0)
    return await _describe(served, entry)


@router.post("/upload", status_code=202)
async def upload_database(
    served: Served,
    caller: Writer,
    name: NewName,
    images: Images = [],  # noqa: B006 - FastAPI reads the default, and copies it
    archive: Archive = None,
    captions: Captions = "[]",
) -> JobAnswer:
    """A database of pictures that are sent with the request. Nothing is kept unless all of them are accepted."""
    staged = await served.uploads.run(caller.tenant_id, _stage, served, caller, images, archive, captions)
    try:
        entry = await asyncio.to_thread(served.databases.add, caller.tenant_id, name, _root(served, caller))
    except Exception:
        await asyncio.to_thread(open_store(staged[0]).delete_tree, "")
        raise
    return await _first_build(served, caller, entry, {"source": staged[0], "staged": True}, *staged[1:])


@router.get("/{database}")
async def show_database(database: Name, served: Served, caller: Reader) -> DatabaseAnswer:
    """What it holds."""
    return await _describe(served, await served.database(caller.tenant_id, database))


@router.delete("/{database}", status_code=204)
async def delete_database(database: Name, served: Served, caller: Writer) -> Response:
    """Removes a database of yours, all versions; of a view, the view alone."""
    entry = await asyncio.to_thread(served.databases.find, caller.tenant_id, database)  # also a view of what is gone
    if entry is None:
        entry = await _own(served, caller, database)
    await asyncio.to_thread(served.databases.remove, caller.tenant_id, entry.id)
    if entry.view_of is None:
        await asyncio.to_thread(open_store(entry.uri.rpartition("/")[0]).delete_tree, "")
    await served.audit(caller, "database.delete", entry.id, name=entry.name)
    return Response(status_code=204)


@router.post("/{database}/search")
async def search(database: Name, body: SearchBody, served: Served, caller: Reader) -> SearchAnswer:
    """Rows nearest to a text, a picture or another row, or whose captions match best by BM25."""
    entry = await served.database(caller.tenant_id, database)
    await served.check_rows(entry, [] if body.row is None else [body.row])
    image = None
    if body.image is not None:
        image = await served.pictures.run(caller.tenant_id, decode_base64, body.image, served.config.uploads)
    ref = ref_of(entry, body.filters, tuple(body.without), body.version)
    embedding = None if body.embedding is None else tuple(body.embedding)
    query = SearchQuery(ref, body.k, body.text, image, body.bm25, body.row, embedding)
    with caller.parts.part("find"):
        found = await served.backend.retrieval.search(query)
    rows = [neighbor_answer(served, caller.tenant_id, entry, found.version, row) for row in found.rows]
    return SearchAnswer(database=entry.name, version=found.version, rows=rows)


@router.get("/{database}/rows/{row}/image", responses={200: {"content": {"image/png": {}}}}, response_class=Response)
async def row_image(
    database: Name,
    row: RowId,
    request: Request,
    served: Served,
    version: Annotated[str | None, Query(max_length=64)] = None,
    size: Annotated[int | None, Query(ge=16, le=2048)] = None,
) -> Response:
    """The picture of a row."""
    entry = await served.database(await tenant_of_picture(request, served), database)
    data = await served.backend.retrieval.image(ref_of(entry, version=version), row, size)
    return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


@router.post("/{database}/rows", status_code=202)
async def add_rows(
    database: Name,
    served: Served,
    caller: Writer,
    images: Images = [],  # noqa: B006 - as above
    archive: Archive = None,
    captions: Captions = "[]",
) -> JobAnswer:
    """Adds pictures: a new version is built from the live one, and published."""
    entry = await _built(served, caller, database)
    live_bytes = await asyncio.to_thread(_live_bytes, entry)
    source, count, size = await served.uploads.run(caller.tenant_id, _stage, served, caller, images, archive, captions)
    spec = {"source": source, "staged": True, "append": live_bytes is not None}
    return await _build(served, caller, entry, "add", spec, count, size + (live_bytes or 0))


@router.post("/{database}/rows/delete", status_code=202)
async def delete_rows(database: Name, body: DeleteRowsBody, served: Served, caller: Writer) -> JobAnswer:
    """Removes rows: a new version is built without them, and published; earlier versions still have them."""
    entry = await _built(served, caller, database)
    facts = await served.backend.retrieval.facts(ref_of(entry))
    ids = sorted(set(body.ids))
    if ids[-1] >= facts.rows:
        raise NotFoundError(f"there is no row {ids[-1]}: this database has rows 0 to {facts.rows - 1:,}")
    if len(ids) == facts.rows:
        raise ConflictError("this would leave no row: delete the database instead")
    spec = {"exclude_ids": ids, "append": True}
    return await _build(served, caller, entry, "delete", spec, 0, facts.bytes)


@router.get("/{database}/jobs")
async def list_jobs(database: Name, served: Served, caller: Reader) -> list[JobAnswer]:
    """Builds of a database of yours, newest first."""
    entry = await _own(served, caller, database)
    jobs = await asyncio.to_thread(served.databases.jobs, caller.tenant_id, entry.id)
    return [_job(await _reconciled(served, job), entry.name) for job in jobs[:50]]


@router.get("/{database}/jobs/{job}")
async def show_job(
    database: Name, job: Annotated[str, Path(max_length=64)], served: Served, caller: Reader
) -> JobAnswer:
    """How far a build is."""
    entry = await _own(served, caller, database)
    found = await asyncio.to_thread(served.databases.find_job, caller.tenant_id, job)
    if found is None or found.database_id != entry.id:
        raise NotFoundError(f"there is no job '{job}'")
    return _job(await _reconciled(served, found), entry.name)


@router.get("/{database}/versions")
async def list_versions(database: Name, served: Served, caller: Reader) -> VersionsAnswer:
    """Finished versions, oldest first. Of a part of a database, how many rows they have is not said."""
    entry = await served.database(caller.tenant_id, database)

    def read() -> list[VersionAnswer]:
        catalog = Catalog.open(entry.uri)
        pointer = catalog.pointer()
        live = None if pointer is None else pointer.version
        found = [catalog.manifest(version) for version in catalog.versions()]
        return [
            VersionAnswer(
                id=own.version,
                live=own.version == live,
                rows=None if entry.where else own.rows,
                bytes=None if entry.where else own.total_bytes,
                created_at=str(own.created_at),
            )
            for own in found
        ]

    return VersionsAnswer(data=await asyncio.to_thread(read))


@router.post("/{database}/versions/{version}/publish")
async def publish(
    database: Name, version: Annotated[str, Path(max_length=64)], served: Served, caller: Writer
) -> PublishedAnswer:
    """Makes a finished version live, at once and for every search that begins after it."""
    entry = await _built(served, caller, database)
    catalog = Catalog.open(entry.uri)
    await _known_version(catalog, version)
    await asyncio.to_thread(publish_version, catalog, version)
    await served.audit(caller, "database.publish", entry.id, version=version)
    return PublishedAnswer(database=entry.name, version=version)


@router.post("/{database}/rollback")
async def rollback(database: Name, body: RollbackBody, served: Served, caller: Writer) -> PublishedAnswer:
    """Makes the version live that was so before, or the one that is named."""
    entry = await _built(served, caller, database)
    catalog = Catalog.open(entry.uri)
    if body.to is not None:
        await _known_version(catalog, body.to)
    try:
        version = await asyncio.to_thread(rollback_version, catalog, body.to)
    except VersionError:
        raise ConflictError("there is no version before the live one") from None
    await served.audit(caller, "database.rollback", entry.id, version=version)
    return PublishedAnswer(database=entry.name, version=version)


async def _own(served: Services, caller: Caller, name: str) -> DatabaseEntry:
    """A database of the caller's own.

    Raises:
        NotFoundError: there is none; a shared one is not to be changed either.
    """
    entry = await served.database(caller.tenant_id, name)
    if entry.shared:
        raise ConflictError(f"'{name}' is shared by all tenants, and cannot be changed here: make a view of it")
    return entry


async def _built(served: Services, caller: Caller, name: str) -> DatabaseEntry:
    """A database of the caller's own that is no view."""
    entry = await _own(served, caller, name)
    if entry.view_of is not None:
        raise ConflictError(f"'{name}' is a view of '{entry.view_of}': change that, or make a database")
    return entry


async def _check_columns(served: Services, base: DatabaseEntry, where: dict[str, list[str]]) -> None:
    known = ["group", "key", "licence", *(await served.backend.retrieval.facts(ref_of(base))).fields]
    for column in where:
        if column not in known:
            raise UploadError(f"'{base.name}' cannot be filtered by '{column}': {nearest(column, known)}")


async def _known_version(catalog: Catalog, version: str) -> None:
    if version not in await asyncio.to_thread(catalog.versions):
        raise NotFoundError(f"there is no version '{version}'")


def _live_bytes(entry: DatabaseEntry) -> int | None:
    """Of the live version, which a new one takes once more; None: there is none yet."""
    catalog = Catalog.open(entry.uri)
    pointer = catalog.pointer()
    return None if pointer is None else catalog.manifest(pointer.version).total_bytes


async def _describe(served: Services, entry: DatabaseEntry, is_there: bool = True) -> DatabaseAnswer:
    where = {column: list(values) for column, values in entry.where.items()}
    common = {
        "id": entry.id,
        "name": entry.name,
        "shared": entry.shared,
        "view_of": entry.view_of,
        "where": where,
        "created_at": None if entry.created_at is None else entry.created_at.isoformat(),
    }
    try:
        facts = await served.backend.retrieval.facts(ref_of(entry)) if is_there else None
    except VersionError:
        facts = None
    if facts is None:
        return DatabaseAnswer(version=None, rows=0, bytes=0, **common)
    return DatabaseAnswer(
        version=facts.version,
        rows=facts.rows,
        bytes=facts.bytes,
        columns=["key", "group", "licence", *facts.fields],
        bm25=facts.bm25,
        encoder=facts.encoder,
        **common,
    )


async def _first_build(
    served: Services, caller: Caller, entry: DatabaseEntry, spec: dict[str, Any], rows: int, size: int
) -> JobAnswer:
    """Starts the build of a new database, which leaves its name free if it cannot be started."""
    try:
        return await _build(served, caller, entry, "create", spec, rows, size)
    except Exception:
        await asyncio.to_thread(served.databases.remove, caller.tenant_id, entry.id)
        raise


async def _build(
    served: Services, caller: Caller, entry: DatabaseEntry, kind: str, spec: dict[str, Any], rows: int, size: int
) -> JobAnswer:
    """Puts a build on record and starts it; what was staged for it goes if it cannot start."""
    whole = {**spec, "uri": entry.uri}
    reserved = size + rows * INDEX_BYTES_A_ROW
    try:
        job = await asyncio.to_thread(
            served.databases.start_job, caller.tenant_id, entry.id, kind, whole, rows, reserved
        )
    except Exception:
        await asyncio.to_thread(remove_staged, spec)
        raise
    await served.audit(caller, f"database.{kind}", entry.id, job=job.id, rows=rows)
    try:
        await served.backend.start_build(job.id)
    except Exception:
        await asyncio.to_thread(served.databases.fail_job, job.id, "the build could not be started: try again")
        await asyncio.to_thread(remove_staged, spec)
        raise
    return _job(job, entry.name)


async def _reconciled(served: Services, job: JobEntry) -> JobEntry:
    """A build that was killed cannot say so itself."""
    if job.state in ("queued", "running") and await _has_ended(served, job):
        message = "the build ended before it was done: send it again"
        await asyncio.to_thread(served.databases.fail_job, job.id, message)
        await asyncio.to_thread(remove_staged, job.spec)
        found = await asyncio.to_thread(served.databases.find_job, job.tenant_id, job.id)
        assert found is not None
        return found
    return job


async def _has_ended(served: Services, job: JobEntry) -> bool:
    fate = await served.backend.build_fate(job.id)
    # What is on record for a moment only may be about to start.
    return fate == "ended" or (fate == "unknown" and (now() - job.created_at).total_seconds() > _START_SECONDS)


def _stage(
    served: Services, caller: Caller, images: list[UploadFile], archive: UploadFile | None, captions: str
) -> tuple[str, int, int]:
    """Checks everything, then writes it where the build reads; returns where, how many, and their bytes."""
    limits = served.config.uploads
    files: list[tuple[str, BinaryIO]] = [(image.filename or "", image.file) for image in images]
    if (archive is None) == (not files):
        raise UploadError("send `images` or an `archive`")

    def read() -> Iterator[UploadedImage]:
        if archive is not None:
            return read_archive(archive.file, limits)
        return read_files(files, _captions(captions), limits)

    for _ in read():
        pass
    place = f"{served.config.storage.rstrip('/')}/uploads/{caller.tenant_id}/{secrets.token_hex(10)}"
    store = open_store(place)
    try:
        count, size = stage(read(), store)
    except BaseException:
        store.delete_tree("")
        raise
    return place, count, size


def _captions(text: str) -> list[str]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise UploadError("captions are not a JSON list") from None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UploadError("captions must be a JSON list of texts")
    if not all(is_unicode(value) for value in values):
        raise UploadError("captions hold half of a surrogate pair: send UTF-8 text")
    return values


def _root(served: Services, caller: Caller) -> str:
    return f"{served.config.storage.rstrip('/')}/databases/{caller.tenant_id}"


def _job(job: JobEntry, database: str) -> JobAnswer:
    return JobAnswer(
        id=job.id,
        database=database,
        kind=job.kind,
        state=job.state,
        message=job.message,
        stage=job.stage,
        done=job.done,
        total=job.total,
        per_second=round(job.rate, 3),
        version=job.version,
        created_at=job.created_at.isoformat(),
        finished_at=None if job.finished_at is None else job.finished_at.isoformat(),
    )
