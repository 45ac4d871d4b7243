"""Versions of a database by name: which exist, which is live, and moving the live one atomically."""

import re
from dataclasses import dataclass

from remembrandt.databases.manifest import (
    CURRENT,
    MANIFEST,
    Manifest,
    Pointer,
    decode_document,
    digest,
    encode_document,
)
from remembrandt.errors import CorruptionError, VersionError
from remembrandt.storage import Store, open_store, split_uri

_HISTORY = 50
_VERSION = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Catalog:
    """The folder `<root>/<name>` of one database."""

    store: Store
    name: str

    @classmethod
    def open(cls, uri: str) -> "Catalog":
        """The catalog at a database URI; nothing needs to exist there yet."""
        return cls(open_store(uri), split_uri(uri)[1])

    def version_store(self, version: str) -> Store:
        """The folder of one version.

        Raises:
            VersionError: not the name of a version, such as a path that leads elsewhere.
        """
        if not _VERSION.fullmatch(version) or version in (".", ".."):
            raise VersionError(f"{version[:100]!r} is not the name of a version of {self.store.uri}")
        return self.store.child("versions", version)

    def build_store(self, version: str) -> Store:
        """The folder for commit markers of a version under construction."""
        return self.store.child("builds", version)

    def versions(self) -> list[str]:
        """Finished versions (those with a manifest), oldest first."""
        finished = [v for v in self.store.folders("versions") if self.store.child("versions", v).exists(MANIFEST)]
        return sorted(finished, key=lambda v: (self.manifest(v).created_at, v))

    def pointer(self) -> Pointer | None:
        """What is live, or None if nothing was ever published."""
        return self._tagged_pointer()[0]

    def current(self) -> str:
        """The live version.

        Raises:
            VersionError: no such database, or nothing published yet.
        """
        pointer = self.pointer()
        if pointer is None:
            raise VersionError(f"no database is published at {self.store.uri}: check the URI, or build one there")
        return pointer.version

    def manifest(self, version: str) -> Manifest:
        """The manifest of a finished version.

        Raises:
            VersionError: the version does not exist or was never finished.
            CorruptionError: the manifest is damaged, or another one than was published.
        """
        store = self.version_store(version)
        if not store.exists(MANIFEST):
            known = ", ".join(self.store.folders("versions")) or "none"
            raise VersionError(
                f"version '{version}' of {self.store.uri} does not exist or was never finished (folders there: {known})"
            )
        data = store.read(MANIFEST)
        manifest = decode_document(Manifest, data, f"{store.uri}/{MANIFEST}")
        if manifest.version != version:
            raise CorruptionError(f"{store.uri}/{MANIFEST} is the manifest of version '{manifest.version}'")
        return manifest

    def live_manifest(self) -> Manifest:
        """The manifest that `current` points at, checked against the digest in the pointer."""
        pointer = self.pointer()
        if pointer is None:
            return self.manifest(self.current())
        manifest = self.manifest(pointer.version)
        if digest(encode_document(manifest)) != pointer.manifest_sha256:
            raise CorruptionError(
                f"{self.version_store(pointer.version).uri}/{MANIFEST} is not the one that was published: "
                "restore it, or roll back"
            )
        return manifest

    def publish(self, version: str) -> bool:
        """Makes a finished version live by one atomic write; False if it already was.

        Raises:
            ConflictError: somebody else published meanwhile.
        """
        manifest = self.manifest(version)
        pointer, tag = self._tagged_pointer()
        if pointer is not None and pointer.version == version:
            return False
        history = (*pointer.history, pointer.version)[-_HISTORY:] if pointer else ()
        new = Pointer(version=version, manifest_sha256=digest(encode_document(manifest)), history=history)
        self.store.replace(CURRENT, encode_document(new), tag)
        return True

    def rollback_target(self, to: str | None = None) -> str:
        """The version that `rollback` would make live.

        Raises:
            VersionError: there is none.
        """
        return self._before(self.pointer(), to)

    def rollback(self, to: str | None = None) -> str:
        """Makes the version that was live before (or `to`) live again, and returns it."""
        pointer, tag = self._tagged_pointer()
        target = self._before(pointer, to)
        assert pointer is not None
        manifest = self.manifest(target)
        history = tuple(v for v in pointer.history if v != target)
        new = Pointer(version=target, manifest_sha256=digest(encode_document(manifest)), history=history)
        self.store.replace(CURRENT, encode_document(new), tag)
        return target

    def _before(self, pointer: Pointer | None, to: str | None) -> str:
        if pointer is None:
            raise VersionError(f"nothing is published at {self.store.uri}, so there is nothing to roll back")
        target = to or next((v for v in reversed(pointer.history) if v != pointer.version), None)
        if target is None:
            raise VersionError(
                f"version '{pointer.version}' of {self.store.uri} is the first that was published: there is "
                "none before it"
            )
        return target

    def _tagged_pointer(self) -> tuple[Pointer | None, str | None]:
        found = self.store.read_tagged(CURRENT)
        if found is None:
            return None, None
        data, tag = found
        return decode_document(Pointer, data, f"{self.store.uri}/{CURRENT}"), tag
