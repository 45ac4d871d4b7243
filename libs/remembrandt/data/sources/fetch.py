"""Reading the files that metadata point to: paths, `file://` and `s3://` URIs."""

from functools import cached_property

from remembrandt.storage.store import Store, open_store


class FileFetcher:
    """Reads files named absolutely, or relative to a base folder. Picklable; keeps one client a bucket."""

    def __init__(self, base: Store) -> None:
        self.base = base
        self._buckets: dict[str, Store] = {}

    def __getstate__(self) -> dict[str, Store]:
        return {"base": self.base}

    def __setstate__(self, state: dict[str, Store]) -> None:
        self.__init__(state["base"])  # type: ignore[misc]

    def read(self, path: str) -> bytes:
        """The whole file. Raises StorageError."""
        if path.startswith("s3://"):
            bucket, _, key = path.removeprefix("s3://").partition("/")
            store = self._buckets.setdefault(bucket, open_store(f"s3://{bucket}"))
            return store.read(key)
        if path.startswith(("/", "file://")):
            return self._root.read(path.removeprefix("file://").lstrip("/"))
        return self.base.read(path)

    @cached_property
    def _root(self) -> Store:
        return open_store("/")
