"""What made a picture: kept beside it, and inside its file."""

import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from remembrandt.errors import SourceError

_CHUNK = "remembrandt"
_SOFTWARE = "Remembrandt"


@dataclass(frozen=True)
class NeighborRecord:
    """One item that a picture was conditioned on.

    Attributes:
        id: row id; None where the item is no row (the text itself, a given embedding).
        score: of the search that found it; None where none did.
    """

    id: int | None
    score: float | None
    key: str = ""
    caption: str = ""
    licence: str = ""
    fields: Mapping[str, str] | None = None

    @property
    def credit(self) -> str:
        """The artist where one is known, else the key, with the licence."""
        name = (self.fields or {}).get("artist") or self.key
        return f"{name} ({self.licence})" if self.licence else name


@dataclass(frozen=True)
class Record:
    """Everything that a picture was made from; the same model, database version and record give it again."""

    model: str
    text: str
    database: str | None
    version: str | None
    where: Mapping[str, tuple[str, ...]]
    strategy: Mapping[str, Any]
    guidance_scale: float
    sampler: Mapping[str, Any]
    seed: int
    neighbors: tuple[NeighborRecord, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads `to_json`."""
        neighbors = tuple(NeighborRecord(**neighbor) for neighbor in values["neighbors"])
        return cls(**{**values, "neighbors": neighbors})

    @property
    def credits(self) -> str:
        """One line on the art that it was conditioned on: artists where they are known, and licences."""
        return ", ".join(sorted({n.credit for n in self.neighbors if n.id is not None}))


def encode_png(image: Image.Image, record: Record) -> bytes:
    """A PNG with the record inside: whole as JSON, and in the words that PNG registers for people."""
    info = PngInfo()
    info.add_itxt(_CHUNK, json.dumps(record.to_json(), ensure_ascii=False))
    info.add_itxt("Software", f"{_SOFTWARE}: {record.model}")
    if record.text:
        info.add_itxt("Title", record.text)
    if record.credits:
        info.add_itxt("Source", f"painted after {record.credits}")
    return to_png(image, info)


def to_png(image: Image.Image, info: PngInfo | None = None) -> bytes:
    """A PNG's bytes. With runs alone pictures are as small as by zlib's default, in a third to a sixth of the time."""
    data = io.BytesIO()
    image.save(data, format="PNG", pnginfo=info, compress_type=zlib.Z_RLE, compress_level=1)
    return data.getvalue()


def read_record(file: str | Path | BinaryIO) -> Record:
    """The record inside a PNG.

    Raises:
        SourceError: there is none.
    """
    with Image.open(file) as image:
        text = getattr(image, "text", {}).get(_CHUNK)
    if text is None:
        raise SourceError(f"{file} carries no record of how it was made")
    return Record.from_json(json.loads(text))
