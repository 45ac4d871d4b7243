"""The embedded BM25 index: files of a database version, built in one pass over the rows.

    header.json             sizes and the parameters of the analysis and the score
    terms.npy               (V,) uint64 hashes of the terms, ascending; a term's place is its number
    offsets.npy             (V + 1,) int64 start of each term's postings
    documents.npy           (P,) int32 positions of documents, ascending within a term
    counts.npy              (P,) uint16 how often the term occurs there
    peaks.npy               (V,) float32 largest share of its weight that a term reaches in any document
    lengths.npy             (N,) uint8 document lengths (`similarity.encode_lengths`)
    ids.npy                 (N,) int64 row ids, ascending
    columns.arrow           key, group, licence and the source's own columns, for filters

The same documents give the same bytes. Search maps the files into memory and reads what it needs. Letters: N
documents, P postings, V terms.
"""

import hashlib
import json
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from remembrandt.databases.bm25.analysis import ANALYZER, analyze
from remembrandt.databases.bm25.config import Bm25Document, Bm25Info
from remembrandt.databases.bm25.kernels import peak_saturations, scatter_postings
from remembrandt.databases.bm25.similarity import K1, B, encode_lengths, length_factors

FORMAT = 1
OWN_COLUMNS = ("key", "group", "licence")

_LARGEST_COUNT = np.iinfo(np.uint16).max
_CHUNK_DOCUMENTS = 20_000


@dataclass(frozen=True)
class Header:
    """Sizes of an embedded index.

    Attributes:
        documents: all rows; texts: rows with at least one term; terms: distinct terms; postings: term–document pairs;
        total_terms: length of all documents together; salt: of the term hashes.
    """

    format: int
    analyzer: str
    k1: float
    b: float
    documents: int
    texts: int
    terms: int
    postings: int
    total_terms: int
    salt: int


def term_hash(term: str, salt: int) -> int:
    """64-bit number of a term; `salt` is chosen at build time so that no two terms of an index share one."""
    digest = hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


def build_embedded(documents: Iterator[Bm25Document], folder: Path) -> Bm25Info:
    """Writes the index of `documents`, which come in ascending order of id, into `folder`.

    Memory holds the vocabulary (about 150 bytes a distinct term) and one column of the filters; postings pass through
    temporary files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as scratch:
        collected = _collect(documents, Path(scratch), folder)
        header = _write_postings(collected, folder)
        (folder / "header.json").write_text(json.dumps(asdict(header), sort_keys=True, indent=1) + "\n")
    return Bm25Info("embedded", ANALYZER, K1, B, header.documents, fields=collected.fields)


class _Vocabulary(dict[str, int]):
    """Numbers terms in the order in which they appear."""

    def __missing__(self, term: str) -> int:
        number = self[term] = len(self)
        return number


@dataclass(frozen=True)
class _Collected:
    vocabulary: _Vocabulary
    terms_P: NDArray[np.int32]
    counts_P: NDArray[np.uint16]
    document_ends_N: NDArray[np.int64]
    lengths_N: NDArray[np.int64]
    fields: tuple[str, ...]


def _collect(documents: Iterator[Bm25Document], scratch: Path, folder: Path) -> _Collected:
    """Analyses every document; postings in document order go to files in `scratch`, ids and columns to `folder`."""
    vocabulary = _Vocabulary()
    ids, ends, lengths = array("q"), array("q"), array("q")
    columns = _Columns(scratch / "columns.arrow")
    postings = 0
    with (scratch / "terms").open("wb") as term_file, (scratch / "counts").open("wb") as count_file:
        while chunk := list(islice(documents, _CHUNK_DOCUMENTS)):
            terms, counts = array("i"), array("H")
            for document in chunk:
                assert not ids or document.id > ids[-1], f"row {document.id} comes after row {ids[-1]}"
                found = analyze(document.text)
                occurrences = Counter(found)
                terms.extend(map(vocabulary.__getitem__, occurrences))
                counts.extend(_capped(occurrences.values(), len(found)))
                ids.append(document.id)
                lengths.append(len(found))
                ends.append(postings + len(terms))
            postings += len(terms)
            terms.tofile(term_file)
            counts.tofile(count_file)
            columns.write(chunk)
    columns.close(folder / "columns.arrow")
    _save(folder / "ids.npy", np.frombuffer(ids, np.int64) if ids else np.empty(0, np.int64))
    return _Collected(
        vocabulary,
        _mapped(scratch / "terms", np.int32),
        _mapped(scratch / "counts", np.uint16),
        np.array(ends, np.int64),
        np.array(lengths, np.int64),
        columns.fields,
    )


def _capped(counts: Iterable[int], length: int) -> Iterable[int]:
    """Counts above 65,535 change a score by less than 0.002%."""
    return counts if length <= _LARGEST_COUNT else (min(count, int(_LARGEST_COUNT)) for count in counts)


def _write_postings(collected: _Collected, folder: Path) -> Header:
    hashes_V, salt = _hashes(collected.vocabulary)
    order = np.argsort(hashes_V)
    rank_V = np.empty(len(order), np.int32)
    rank_V[order] = np.arange(len(order), dtype=np.int32)
    frequencies_V = _frequencies(collected.terms_P, len(order))[order]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(frequencies_V)])
    postings = int(offsets[-1])
    documents_P = _created(folder / "documents.npy", np.int32, postings)
    counts_P = _created(folder / "counts.npy", np.uint16, postings)
    scatter_postings(
        collected.document_ends_N, collected.terms_P, collected.counts_P,
        rank_V, offsets[:-1].copy(), documents_P, counts_P,
    )  # fmt: skip
    lengths = encode_lengths(collected.lengths_N)
    texts, total = int(np.count_nonzero(collected.lengths_N)), int(collected.lengths_N.sum())
    peaks = np.empty(len(order), np.float32)
    peak_saturations(offsets, documents_P, counts_P, lengths, length_factors(total, texts), peaks)
    _flush(documents_P)
    _flush(counts_P)
    for name, values in (("terms", hashes_V[order]), ("offsets", offsets), ("peaks", peaks), ("lengths", lengths)):
        _save(folder / f"{name}.npy", values)
    return Header(FORMAT, ANALYZER, K1, B, len(lengths), texts, len(order), postings, total, salt)


def _hashes(vocabulary: Mapping[str, int]) -> tuple[NDArray[np.uint64], int]:
    salt = 0
    while True:
        hashes = np.fromiter((term_hash(term, salt) for term in vocabulary), np.uint64, len(vocabulary))
        if len(np.unique(hashes)) == len(hashes):
            return hashes, salt
        salt += 1


def _frequencies(terms_P: NDArray[np.int32], terms: int, step: int = 10_000_000) -> NDArray[np.int64]:
    total = np.zeros(terms, np.int64)
    for start in range(0, len(terms_P), step):
        total += np.bincount(terms_P[start : start + step], minlength=terms)
    return total


class _Columns:
    """Collects filter columns in an Arrow file, and rewrites them with few distinct values as dictionaries."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pa.RecordBatchFileWriter | None = None
        self.fields: tuple[str, ...] = ()

    def write(self, documents: Sequence[Bm25Document]) -> None:
        if self._writer is None:
            self.fields = tuple(sorted(documents[0].fields))
            self._writer = pa.ipc.new_file(self._path, self._schema())
        values = [[getattr(document, name) for document in documents] for name in OWN_COLUMNS]
        values += [[document.fields.get(name, "") for document in documents] for name in self.fields]
        arrays = [pa.array(column, pa.large_string()) for column in values]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema()))

    def close(self, target: Path) -> None:
        if self._writer is None:
            table = self._schema().empty_table()
        else:
            self._writer.close()
            table = pa.ipc.open_file(pa.memory_map(str(self._path))).read_all()
        packed = {name: _packed(table.column(name)) for name in table.column_names}
        with pa.ipc.new_file(target, pa.schema([(name, column.type) for name, column in packed.items()])) as writer:
            writer.write_table(pa.table(packed))

    def _schema(self) -> pa.Schema:
        return pa.schema([(name, pa.large_string()) for name in (*OWN_COLUMNS, *(f"fields.{n}" for n in self.fields))])


def _packed(column: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    encoded = column.dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = pa.concat_arrays(encoded.chunks) if encoded.num_chunks else pa.array([], encoded.type)
    return encoded if len(encoded.dictionary) * 2 < len(encoded) else column.combine_chunks()


def _mapped(path: Path, dtype: type) -> NDArray[Any]:
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def _created(path: Path, dtype: type, length: int) -> NDArray[Any]:
    if not length:
        _save(path, np.empty(0, dtype))
        return np.empty(0, dtype)
    return np.lib.format.open_memmap(path, "w+", dtype, (length,))


def _flush(values: NDArray[Any]) -> None:
    if isinstance(values, np.memmap):
        values.flush()


def _save(path: Path, values: NDArray[Any]) -> None:
    np.save(path, values, allow_pickle=False)
