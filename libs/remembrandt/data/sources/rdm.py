"""Retrieval databases as the published RDM code writes them: `.npz` files of patch embeddings.

Each file holds `embedding` (N, D), `img_id` (N,) and `patch_coords` (N, 4) as left, top, right, bottom, and sometimes
`class_id` (N,). `img_id` counts the images of the list that the database was made from; coordinates refer to the image
after resizing its shorter edge to `image_size` and cropping the central square.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from remembrandt.data.decode import DecodeError, image_size
from remembrandt.data.records import SourceBlock, SourceRecord
from remembrandt.data.sources.common import BaseSourceConfig, PartedSource, decode_text
from remembrandt.data.sources.fetch import FileFetcher
from remembrandt.data.sources.listing import PackedNames, content_digest, is_gone, list_files, map_ahead
from remembrandt.data.sources.npy import NpzReader, npz_arrays
from remembrandt.data.sources.tables import DamagedFileError
from remembrandt.errors import SourceError, StorageError
from remembrandt.storage.store import open_store, split_uri

Box = tuple[int, int, int, int]
_ARRAYS = ("embedding", "img_id", "patch_coords")


class RdmNpzConfig(BaseSourceConfig):
    """One `.npz` file, or a folder of parts. A row's key is `<file>/<row>`, its group the image.

    Attributes:
        image_list: file (path or URI) whose line number `img_id` (from 0) is the image's path. Without it rows have
            embeddings only.
        images: folder that these paths start from; default: the folder of the list.
        image_size: what the shorter edge was resized to before patches were cut; None if coordinates are in pixels of
            the source image.
    """

    kind: Literal["rdm_npz"] = "rdm_npz"
    image_list: str | None = None
    images: str | None = None
    image_size: int | None = 1200

    @model_validator(mode="after")
    def _check(self) -> "RdmNpzConfig":
        if self.images is not None and self.image_list is None:
            raise ValueError("images needs image_list, which says what image an img_id is")
        return self


class RdmNpzSource(PartedSource):
    """Reads `RdmNpzConfig`.

    Archives are compressed as a whole, so that reading a block means decompressing all before it. A process that reads
    several blocks of a file in order goes on where it stopped.
    """

    has_embeddings = True
    config: RdmNpzConfig

    def __init__(self, config: RdmNpzConfig) -> None:
        listing = list_files(config.uri, (".npz",), config.include)
        self._store = listing.store
        self._counts: dict[str, int | str] = {entry.path: self._inspect(entry.path) for entry in listing.files}
        if all(isinstance(count, str) for count in self._counts.values()):
            part, problem = next(iter(self._counts.items()))
            raise SourceError(f"{self._store.uri}/{part}: {problem}")
        self._names = _read_list(config.image_list)
        folder = config.images or (split_uri(config.image_list)[0] if config.image_list else config.uri)
        self._files = FileFetcher(open_store(folder))
        self._open: dict[str, NpzReader] = {}
        super().__init__(config, content_digest(listing.files))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def _parts(self) -> Iterable[tuple[str, Sequence[int]]]:
        return [(part, [count if isinstance(count, int) else 1]) for part, count in self._counts.items()]

    def _read(self, block: SourceBlock) -> Iterator[SourceRecord]:
        count = self._counts[block.part]
        if isinstance(count, str):
            yield SourceRecord(block.part, problem=count)
            return
        yield from map_ahead(self._files.base, self._with_image, self._rows(block))

    def _peek(self) -> Iterator[Mapping[str, Any]]:
        part = next(part for part, count in self._counts.items() if isinstance(count, int))
        if "class_id" in npz_arrays(self._store, part):
            yield {"cls": "present"}

    def _rows(self, block: SourceBlock) -> Iterator[tuple[SourceRecord, int, Box]]:
        position = block.start
        try:
            with self._reader_at(block) as reader:
                for embedding, img_id, coords, *class_id in reader.rows(block.stop):
                    number = int(cast(NDArray[np.integer], img_id))
                    left, top, right, bottom = (int(edge) for edge in cast(NDArray[np.integer], coords))
                    metadata = {"group": self._group(number), "cls": str(class_id[0]) if class_id else ""}
                    vector = np.asarray(embedding, dtype=np.float32)
                    record = self._reader.record(_key(block.part, position), metadata, embedding=vector)
                    yield record, number, (left, top, right, bottom)
                    position += 1
        except DamagedFileError as error:
            for lost in range(position, block.stop):
                yield SourceRecord(_key(block.part, lost), problem=str(error)), -1, (0, 0, 0, 0)

    @contextmanager
    def _reader_at(self, block: SourceBlock) -> Iterator[NpzReader]:
        """A reader at the block's first row: the one that the block before left, or a new one."""
        reader = self._open.pop(block.part, None)
        if reader is not None and reader.position > block.start:
            reader.close()
            reader = None
        if reader is None:
            names = npz_arrays(self._store, block.part)
            reader = NpzReader(self._store, block.part, (*_ARRAYS, "class_id") if "class_id" in names else _ARRAYS)
        try:
            reader.skip_to(block.start)
            yield reader
        except BaseException:
            reader.close()
            raise
        self._open[block.part] = reader

    def _with_image(self, row: tuple[SourceRecord, int, Box]) -> SourceRecord:
        record, number, coords = row
        if record.problem is not None:
            return record
        assert record.embedding is not None
        if not np.isfinite(record.embedding).all():
            return SourceRecord(record.key, problem="its embedding has values that are not finite")
        if self._names is None:
            return replace(record, box=coords)
        if not 0 <= number < len(self._names):
            return SourceRecord(record.key, problem=f"img_id {number} is outside image_list ({len(self._names)} lines)")
        try:
            image = self._files.read(self._names[number])
            box = source_box(coords, image_size(image), self.config.image_size)
        except DecodeError as error:
            return SourceRecord(record.key, problem=f"{self._names[number]}: {error}")
        except StorageError as error:
            if not is_gone(error):
                raise
            return SourceRecord(record.key, problem=str(error))
        return replace(record, image=image, box=box)

    def _group(self, number: int) -> str:
        if self._names is not None and 0 <= number < len(self._names):
            return self._names[number]
        return str(number)

    def _inspect(self, path: str) -> int | str:
        """How many rows a file has, or why it cannot be read."""
        try:
            reader = NpzReader(self._store, path, _ARRAYS)
        except DamagedFileError as error:
            return str(error)
        reader.close()
        shapes = [header.shape for header in reader.headers]
        rows = shapes[0][0]
        if len(shapes[0]) != 2 or shapes[1] != (rows,) or shapes[2] != (rows, 4):
            return f"embedding, img_id and patch_coords have shapes {shapes}, expected (N, D), (N,), (N, 4)"
        return rows


def source_box(coords: Box, size: tuple[int, int], resized_to: int | None) -> Box:
    """Patch coordinates in pixels of a source image of (width, height) `size`.

    Undoes resizing the shorter edge to `resized_to` and cropping the central square; clipped to the image.
    """
    if resized_to is None:
        scale, x_offset, y_offset = 1.0, 0, 0
    else:
        scale = min(size) / resized_to
        x_offset, y_offset = ((round(edge / scale) - resized_to) // 2 for edge in size)
    left, top, right, bottom = coords
    exact = (left + x_offset, top + y_offset, right + x_offset, bottom + y_offset)
    left, top, right, bottom = (round(edge * scale) for edge in exact)
    left, top = min(max(left, 0), size[0] - 1), min(max(top, 0), size[1] - 1)
    return left, top, min(max(right, left + 1), size[0]), min(max(bottom, top + 1), size[1])


def _key(part: str, row: int) -> str:
    return f"{part.removesuffix('.npz')}/{row}"


def _read_list(uri: str | None) -> PackedNames | None:
    if uri is None:
        return None
    parent, name = split_uri(uri)
    try:
        text = decode_text(open_store(parent).read(name))
    except StorageError as error:
        raise SourceError(f"image_list: {error}") from error
    return PackedNames(text.splitlines())
