"""A folder tree of image files with captions and metadata beside them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from remembrandt.data.records import SourceBlock, SourceRecord
from remembrandt.data.sources.common import PEEK_ITEMS, BaseSourceConfig, PartedSource, decode_text, parse_metadata
from remembrandt.data.sources.listing import PackedNames, content_digest, is_gone, list_files, map_ahead
from remembrandt.errors import StorageError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_CAPTION, _METADATA = 1, 2


class ImagesConfig(BaseSourceConfig):
    """A folder of images. `a/b.jpg` may have its caption in `a/b.txt` and metadata in `a/b.json`.

    The key of an image is its path below the folder, extension included. Other files are ignored.
    """

    kind: Literal["images"] = "images"
    extensions: tuple[str, ...] = IMAGE_EXTENSIONS


class ImagesSource(PartedSource):
    """Reads `ImagesConfig`. The whole tree is one part, so that folders of few images do not make tiny blocks."""

    def __init__(self, config: ImagesConfig) -> None:
        suffixes = tuple(f".{extension.lower().lstrip('.')}" for extension in config.extensions)
        listing = list_files(config.uri, suffixes, config.include, companions=(".txt", ".json"))
        self._store = listing.store
        beside = {entry.path for entry in listing.companions}
        self._names = PackedNames(f"{_sidecars_of(entry.path, beside)}{entry.path}" for entry in listing.files)
        super().__init__(config, content_digest(listing.files + listing.companions))

    def _parts(self) -> Iterable[tuple[str, Sequence[int]]]:
        return [("", [len(self._names)])]

    def _read(self, block: SourceBlock) -> Iterator[SourceRecord]:
        names = self._names.between(block.start, block.stop)
        return map_ahead(self._store, self._read_item, names)

    def _peek(self) -> Iterator[Mapping[str, Any]]:
        for name in islice(self._names.between(0, len(self._names)), PEEK_ITEMS):
            try:
                yield self._metadata(name[1:], int(name[0]))[1]
            except (ValueError, StorageError):
                continue

    def _read_item(self, name: str) -> SourceRecord:
        path, sidecars = name[1:], int(name[0])
        try:
            text, metadata = self._metadata(path, sidecars)
            image = self._store.read(path)
        except ValueError as error:
            return SourceRecord(path, problem=str(error))
        except StorageError as error:
            if not is_gone(error):
                raise
            return SourceRecord(path, problem=str(error))
        return self._reader.record(path, metadata, text=text, image=image)

    def _metadata(self, path: str, sidecars: int) -> tuple[str, dict[str, Any]]:
        stem = _stem(path)
        text = decode_text(self._store.read(f"{stem}.txt")) if sidecars & _CAPTION else ""
        return text, parse_metadata(self._store.read(f"{stem}.json")) if sidecars & _METADATA else {}


def _sidecars_of(path: str, beside: set[str]) -> int:
    stem = _stem(path)
    return _CAPTION * (f"{stem}.txt" in beside) + _METADATA * (f"{stem}.json" in beside)


def _stem(path: str) -> str:
    return path.rpartition(".")[0]
