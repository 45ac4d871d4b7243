"""Which version of a database a run paints from: the one that is live when it is begun, to its end."""

from collections.abc import Iterable, Mapping, Sequence

from remembrandt.databases.catalog import Catalog
from remembrandt.databases.manifest import Manifest
from remembrandt.generation.cascade import CascadeRequest
from remembrandt.generation.requests import PictureRequest

Request = PictureRequest | CascadeRequest


def live_versions(requests: Sequence[Request]) -> dict[str, str]:
    """The versions that are live now of databases that requests name without one."""
    named = {request.database.uri for request in requests if request.database and request.database.version is None}
    return {uri: Catalog.open(uri).live_manifest().version for uri in sorted(named)}


def pinned(requests: Sequence[Request], versions: Mapping[str, str]) -> list[Request]:
    """The same requests with the version of every database named, so that all of a run paint from one."""
    found = []
    for request in requests:
        ref = request.database
        if ref is not None and ref.version is None and ref.uri in versions:
            ref = ref.model_copy(update={"version": versions[ref.uri]})
        found.append(request.model_copy(update={"database": ref}))
    return found


def manifests_of(requests: Iterable[Request]) -> list[Manifest]:
    """Of every database version that requests name."""
    keys = {request.database.key for request in requests if request.database is not None}
    catalogs = [(Catalog.open(uri), version) for uri, version in sorted(keys, key=str)]
    return [catalog.live_manifest() if version is None else catalog.manifest(version) for catalog, version in catalogs]
