"""Keeping versions in order after they are built: publish, roll back, prune."""

from dataclasses import dataclass

from remembrandt.databases.bm25 import Bm25Config, ElasticsearchLoader
from remembrandt.databases.build import alias_name
from remembrandt.databases.cache import check_files
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.manifest import Manifest
from remembrandt.errors import VersionError


@dataclass(frozen=True)
class Pruned:
    """What `prune_versions` removed (or would remove)."""

    versions: tuple[str, ...]
    unfinished: tuple[str, ...]
    bytes: int


def publish_version(catalog: Catalog, version: str) -> bool:
    """Makes a finished, intact version live, with its Elasticsearch alias; False if it already was."""
    manifest = catalog.manifest(version)
    check_files(catalog.version_store(version), manifest.file_records)
    changed = catalog.publish(version)
    _move_alias(catalog, manifest)
    return changed


def rollback_version(catalog: Catalog, to: str | None = None) -> str:
    """Makes the version that was live before (or `to`) live again, if it is intact; returns its id."""
    manifest = catalog.manifest(catalog.rollback_target(to))
    check_files(catalog.version_store(manifest.version), manifest.file_records)
    version = catalog.rollback(manifest.version)
    _move_alias(catalog, manifest)
    return version


def prune_versions(catalog: Catalog, keep: int, *, dry_run: bool = False) -> Pruned:
    """Removes finished versions but the live one and the `keep` newest others, and all that were never finished.

    Elasticsearch indices of removed versions go with them. Run it when no build of this database is under way.
    """
    if keep < 0:
        raise VersionError(f"--keep {keep} is not possible: give 0 or more")
    pointer = catalog.pointer()
    live = pointer.version if pointer else None
    finished = catalog.versions()
    others = [version for version in finished if version != live]
    gone = others[: max(len(others) - keep, 0)]
    unfinished = sorted((set(catalog.store.folders("versions")) | set(catalog.store.folders("builds"))) - set(finished))
    size = sum(catalog.manifest(version).total_bytes for version in gone)
    if not dry_run:
        for version in gone:
            _delete_index(catalog.manifest(version))
        for version in (*gone, *unfinished):
            _delete_version(catalog, version)
    return Pruned(tuple(gone), tuple(unfinished), size)


def _delete_version(catalog: Catalog, version: str) -> None:
    """The manifest goes first, so that a version half removed cannot be opened."""
    store = catalog.version_store(version)
    store.delete("manifest.json")
    store.delete_tree("")
    catalog.store.delete_tree(f"builds/{version}")


def _move_alias(catalog: Catalog, manifest: Manifest) -> None:
    if _on_elasticsearch(manifest):
        _loader(manifest).move_alias(alias_name(catalog))


def _delete_index(manifest: Manifest) -> None:
    if _on_elasticsearch(manifest):
        _loader(manifest).delete()


def _loader(manifest: Manifest) -> ElasticsearchLoader:
    assert manifest.bm25 is not None
    return ElasticsearchLoader(Bm25Config.model_validate(manifest.config["bm25"]), manifest.bm25["index"])


def _on_elasticsearch(manifest: Manifest) -> bool:
    return manifest.bm25 is not None and manifest.bm25["backend"] == "elasticsearch"
