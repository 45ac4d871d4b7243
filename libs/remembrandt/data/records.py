"""What a source yields, and what becomes a row."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SourceRecord:
    """One item of a source, before decoding.

    Attributes:
        key: unique and stable within the source, for example the path below the folder. Rows are sorted by it
            (part first, then position in the part), never by listing order.
        image: encoded file content, or None for text-only sources.
        caption: the text shown with the image; '' if there is none.
        captions: further texts; BM25 indexes them too.
        group: items that show the same thing (patches of one image, one entity): neighbours can exclude it. '' = key.
        licence: licence identifier, '' if unknown.
        fields: other string columns, for example style, entity, artist. Filters can name them.
        embedding: raw image embedding (D,) float32 where the source brings one ready, else None.
        box: patch box (left, top, right, bottom) in pixels of the source image, where the source brings patches.
        problem: why the item cannot be used although it is listed (unreadable, missing partner); then it is counted
            and reported by key, and becomes no row.
    """

    key: str
    image: bytes | None = None
    caption: str = ""
    captions: tuple[str, ...] = ()
    group: str = ""
    licence: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    embedding: NDArray[np.float32] | None = None
    box: tuple[int, int, int, int] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class SourceBlock:
    """A numbered piece of a source: items `start` to `stop` of one part (a folder, a tar, a parquet file)."""

    part: str
    start: int
    stop: int


class Source(Protocol):
    """A place that images come from. Picklable: blocks are read on any node."""

    def fingerprint(self) -> str:
        """Hex digest over what the source holds (sorted names, sizes, identities): the same for an unchanged source."""

    def blocks(self, block_size: int) -> list[SourceBlock]:
        """Cuts the sorted source into blocks of at most `block_size` items; pure in the listing.

        Raises:
            SourceError: nothing usable is there.
        """

    def read(self, block: SourceBlock) -> Iterator[SourceRecord]:
        """The items of one block in order; damaged ones come with `problem` set, never as an exception."""

    @property
    def has_embeddings(self) -> bool:
        """Whether records bring raw embeddings, so that nothing needs encoding."""

    @property
    def field_names(self) -> tuple[str, ...]:
        """Sorted names of the extra string columns."""
