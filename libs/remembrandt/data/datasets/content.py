"""What a data set is made of: numbered blocks, each one file whose bytes are a pure function of its rows."""

import io
import json
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

COUNTED = {"style": "styles", "licence": "licences", "artist": "artists", "split": "splits"}
TEXT_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("group", pa.string()),
        ("licence", pa.string()),
        ("artist", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
    ]
)


class UnusableItemError(Exception):
    """One item of a data set that cannot become a row (blank drawing, damaged file); its message is the reason."""


@dataclass(frozen=True)
class Sample:
    """One row of an image data set: the encoded picture and the JSON fields beside it (`caption` among them)."""

    key: str
    image: bytes
    extension: str
    fields: Mapping[str, Any]


@dataclass
class BlockReport:
    """Counts of one block or of a whole data set; adds up."""

    rows: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in COUNTED.values()})
    skipped: dict[str, str] = field(default_factory=dict)

    def count(self, fields: Mapping[str, Any]) -> None:
        self.rows += 1
        for name, plural in COUNTED.items():
            if fields.get(name):
                self.counts[plural][str(fields[name])] += 1

    def add(self, other: "BlockReport") -> None:
        self.rows += other.rows
        self.skipped |= other.skipped
        for plural, counter in other.counts.items():
            self.counts[plural].update(counter)

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            **{plural: dict(sorted(counter.items())) for plural, counter in self.counts.items()},
            "skipped": dict(sorted(self.skipped.items())),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "BlockReport":
        counts = {plural: Counter(values[plural]) for plural in COUNTED.values()}
        return cls(values["rows"], counts, dict(values["skipped"]))


@dataclass(frozen=True)
class Block:
    """One finished file of a data set."""

    name: str
    data: bytes
    report: BlockReport


class Content(ABC):
    """An opened data set: its packages are fetched, its rows known or countable.

    Attributes:
        versions: packages that the content comes from, name → version.
        total: number of items, or None where only reading tells.
        num_blocks: number of files.
    """

    versions: Mapping[str, str]
    total: int | None
    num_blocks: int

    @abstractmethod
    def build(self, number: int) -> Block:
        """Makes block `number`; the same bytes each time."""


class Recipe(Protocol):
    """How a named data set is made. `request` is cheap and says everything that decides the result."""

    @property
    def name(self) -> str: ...

    def request(self) -> dict[str, Any]:
        """Options and pinned package versions; equal requests make equal data sets."""

    def open(self) -> Content:
        """Fetches the packages and plans the blocks."""


class TarContent(Content):
    """Image rows in webdataset shards of img2dataset's layout; `make` turns a key into its row, or raises
    UnusableItemError.
    """

    def __init__(
        self,
        keys: Sequence[str],
        make: Callable[[str], Sample],
        versions: Mapping[str, str],
        shard_rows: int = 1000,
    ) -> None:
        self.versions, self.total = versions, len(keys)
        self.keys, self._make, self._shard_rows = tuple(sorted(keys)), make, shard_rows
        self.num_blocks = -(-len(keys) // shard_rows)

    def build(self, number: int) -> Block:
        report, samples = BlockReport(), []
        for key in self.keys[number * self._shard_rows : (number + 1) * self._shard_rows]:
            try:
                sample = self._make(key)
            except UnusableItemError as error:
                report.skipped[key] = str(error)
                continue
            report.count(sample.fields)
            samples.append(sample)
        return Block(f"{number:05d}.tar", tar_bytes(samples), report)


class TextContent(Content):
    """Text rows in parquet parts; `read(number)` yields rows with the columns of `TEXT_SCHEMA`."""

    def __init__(
        self,
        num_blocks: int,
        read: Callable[[int], Iterator[Mapping[str, Any]]],
        versions: Mapping[str, str],
        total: int | None,
    ) -> None:
        self.num_blocks, self.versions, self.total, self._read = num_blocks, versions, total, read

    def build(self, number: int) -> Block:
        report, rows = BlockReport(), []
        for row in self._read(number):
            report.count(row)
            rows.append(row)
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, TEXT_SCHEMA), stream, compression="zstd")
        return Block(f"{number:05d}.parquet", stream.getvalue(), report)


def tar_bytes(samples: Sequence[Sample]) -> bytes:
    """A webdataset shard: for each key `<key>.<extension>`, `<key>.json` and `<key>.txt`, with no times or owners."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in sorted(samples, key=lambda sample: sample.key):
            members = {
                sample.extension: sample.image,
                "json": json.dumps({"key": sample.key, **sample.fields}, ensure_ascii=False, sort_keys=True).encode(),
                "txt": str(sample.fields["caption"]).encode(),
            }
            for extension, data in sorted(members.items()):
                info = tarfile.TarInfo(f"{sample.key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()
