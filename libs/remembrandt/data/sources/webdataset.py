"""Tar shards in webdataset's layout, as img2dataset and `remembrandt datasets prepare` write them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from remembrandt.data.records import SourceBlock, SourceRecord
from remembrandt.data.sources.common import (
    PEEK_ITEMS,
    BaseSourceConfig,
    PartedSource,
    decode_text,
    key_digests,
    parse_metadata,
    repeated_keys,
)
from remembrandt.data.sources.images import IMAGE_EXTENSIONS
from remembrandt.data.sources.listing import content_digest, list_files
from remembrandt.data.sources.tar import TarIndex, TarItem, walk_items
from remembrandt.progress import Progress

_TEXT_EXTENSIONS = ("txt", "json", "cls")
_PROGRESS_FROM = 32


class WebdatasetConfig(BaseSourceConfig):
    """Shards `*.tar` with members `<key>.<extension>`: an image, and optionally `.txt`, `.json`, `.cls`.

    Attributes:
        extensions: which of a key's files is its image; the first one present is taken. As in webdataset the extension
            is all that follows the first dot of the file name, so that `x.left.png` has the extension `left.png`.
        shard_in_key: puts the shard's name before each key, for shards that all count from zero.
    """

    kind: Literal["webdataset"] = "webdataset"
    extensions: tuple[str, ...] = IMAGE_EXTENSIONS
    shard_in_key: bool = False


class WebdatasetSource(PartedSource):
    """Reads `WebdatasetConfig`.

    Every shard is walked once to count its items; byte offsets of every 64th are kept, so that a block is one
    sequential read of its own bytes. The index travels with the pickled source.
    """

    config: WebdatasetConfig

    def __init__(self, config: WebdatasetConfig) -> None:
        listing = list_files(config.uri, (".tar",), config.include)
        self._store = listing.store
        self._sizes = {entry.path: entry.bytes for entry in listing.files}
        self._extensions = tuple(extension.lower().lstrip(".") for extension in config.extensions)
        self._indexes: dict[str, TarIndex] = {}
        self._repeated: dict[str, frozenset[int]] = {}
        super().__init__(config, content_digest(listing.files))

    def _parts(self) -> Iterable[tuple[str, Sequence[int]]]:
        self._index_all()
        return [(part, [self._indexes[part].count]) for part in self._sizes]

    def _read(self, block: SourceBlock) -> Iterator[SourceRecord]:
        if block.part not in self._indexes:
            self._indexes[block.part] = self._index(block.part)[0]
        repeated = self._repeated.get(block.part, frozenset())
        number, offset = self._indexes[block.part].seek(block.start)
        with self._store.open(block.part) as stream:
            items = walk_items(stream, self._sizes[block.part], self._is_item_file, offset)
            for position, item in enumerate(islice(items, block.stop - number), start=number):
                if position in repeated:
                    item.problem = (
                        f"key '{item.key}' occurs before in {block.part}; files of one key must be neighbours"
                    )
                if position >= block.start:
                    yield self._record(block.part, item)

    def _peek(self) -> Iterator[Mapping[str, Any]]:
        part = next(iter(self._sizes))
        with self._store.open(part) as stream:
            items = walk_items(stream, self._sizes[part], self._is_item_file)
            for item in islice(items, PEEK_ITEMS):
                try:
                    yield _metadata(item)
                except ValueError:
                    continue

    def _is_item_file(self, extension: str) -> bool:
        last = extension.rpartition(".")[2]
        return extension in self._extensions or extension in _TEXT_EXTENSIONS or last in self._extensions

    def _index_all(self) -> None:
        missing = [part for part in self._sizes if part not in self._indexes]
        if not missing:
            return
        digests: list[tuple[str, NDArray[np.uint64]]] = []
        interval = 2.0 if len(missing) >= _PROGRESS_FROM else float("inf")
        progress = Progress("indexing tar files", len(missing), unit="files", interval=interval)
        with ThreadPoolExecutor(8 if self._store.local_path() is None else 1) as pool:
            for part, (index, keys) in zip(missing, pool.map(self._index, missing), strict=True):
                self._indexes[part] = index
                digests.append((part, keys))
                progress.advance()
        remedy = f"set shard_in_key: true for {self.config.uri}, or name the files uniquely"
        self._repeated = repeated_keys(digests, remedy)

    def _index(self, part: str) -> tuple[TarIndex, NDArray[np.uint64]]:
        index, size = TarIndex(), self._sizes[part]
        with self._store.open(part) as stream:

            def keys() -> Iterator[str]:
                for item in walk_items(stream, size, self._is_item_file, with_data=False):
                    index.add(item)
                    yield self._key(part, item)

            return index, key_digests(keys())

    def _key(self, part: str, item: TarItem) -> str:
        if not item.files:
            return f"{part}{item.key}"
        return f"{part.removesuffix('.tar')}/{item.key}" if self.config.shard_in_key else item.key

    def _record(self, part: str, item: TarItem) -> SourceRecord:
        key = self._key(part, item)
        if item.problem is not None:
            return SourceRecord(key, problem=item.problem)
        image = next((item.files[extension] for extension in self._extensions if extension in item.files), None)
        if image is None:
            return SourceRecord(key, problem=self._why_no_image(item))
        try:
            metadata = _metadata(item)
        except ValueError as error:
            return SourceRecord(key, problem=str(error))
        return self._reader.record(key, metadata, text=decode_text(item.files.get("txt") or b""), image=image)

    def _why_no_image(self, item: TarItem) -> str:
        present = sorted(item.files)
        dotted = [name for name in present if name.rpartition(".")[2] in self._extensions]
        if dotted:
            return f"its image has the extension '{dotted[0]}' (keys end at the first dot): list it under extensions"
        return f"it has no image file, only {', '.join(present)}"


def _metadata(item: TarItem) -> dict[str, Any]:
    metadata = parse_metadata(cast(bytes, item.files["json"])) if item.files.get("json") else {}
    if item.files.get("cls") is not None:
        metadata.setdefault("cls", decode_text(cast(bytes, item.files["cls"])))
    return metadata
