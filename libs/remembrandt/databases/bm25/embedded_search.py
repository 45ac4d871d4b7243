"""Search in the embedded index: memory-mapped, many queries at a time, without the interpreter lock."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from queue import LifoQueue
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from remembrandt.configuration import nearest
from remembrandt.databases.bm25.analysis import ANALYZER
from remembrandt.databases.bm25.config import Bm25Config
from remembrandt.databases.bm25.embedded import FORMAT, OWN_COLUMNS, Header, term_hash
from remembrandt.databases.bm25.kernels import search_batch
from remembrandt.databases.bm25.queries import query_terms
from remembrandt.databases.bm25.similarity import K1, B, length_factors, term_weights
from remembrandt.databases.hits import PAD_ID, Filter, Hits
from remembrandt.errors import CorruptionError, SearchError, VersionError

_ARRAYS = ("terms", "offsets", "documents", "counts", "peaks", "lengths", "ids")
_QUERIES_PER_CALL = 256
_REMEMBERED_FILTERS = 32


class EmbeddedSearcher:
    """Answers from the files that `build_embedded` wrote. Threads may share one."""

    def __init__(self, folder: Path, config: Bm25Config) -> None:
        self.header = _read_header(folder)
        self._arrays = {name: _open_array(folder, name) for name in _ARRAYS}
        _check_sizes(folder, self.header, self._arrays)
        self._columns = _open_columns(folder)
        self._factors = length_factors(self.header.total_terms, self.header.texts)
        threads = config.search_threads
        self._threads = _available_threads() if threads == "auto" else int(threads)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="bm25")
        self._workspaces: LifoQueue[_Workspace | None] = LifoQueue()
        for _ in range(self._threads):
            self._workspaces.put(None)
        self._find_term = lru_cache(1 << 16)(self._look_up_term)
        self._allowed = lru_cache(_REMEMBERED_FILTERS)(self._make_mask)

    def search(self, texts: Sequence[str], k: int, where: Filter | None = None) -> Hits:
        """See `Bm25Searcher.search`."""
        if k < 1:
            raise SearchError(f"k must be at least 1, not {k}")
        allowed = self._allowed(_hashable(where)) if where else np.empty(0, np.bool_)
        step = max(1, min(_QUERIES_PER_CALL, -(-len(texts) // self._threads)))
        pieces = [texts[start : start + step] for start in range(0, len(texts), step)]
        run = map if len(pieces) < 2 or self._threads == 1 else self._pool.map
        answers = list(run(lambda piece: self._search_piece(piece, k, allowed), pieces))
        if not answers:
            return Hits(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        return Hits(np.concatenate([a.ids for a in answers]), np.concatenate([a.scores for a in answers]))

    def close(self) -> None:
        """Unmaps the files."""
        self._pool.shutdown()
        self._arrays.clear()
        self._columns = None

    def _search_piece(self, texts: Sequence[str], k: int, allowed: NDArray[np.bool_]) -> Hits:
        a = self._arrays
        encoded = self._encode(texts)
        width = min(k, max(1, self.header.documents))
        positions = np.full((len(texts), width), -1, np.int64)
        scores = np.full((len(texts), k), -np.inf, np.float32)
        with self._workspace() as workspace:
            search_batch(
                encoded.offsets, encoded.terms, encoded.weights,
                a["offsets"], a["documents"], a["counts"], a["peaks"], a["lengths"], self._factors,
                allowed, workspace.scores_N, workspace.touched_N, positions, scores[:, :width],
            )  # fmt: skip
        ids = np.full((len(texts), k), PAD_ID, np.int64)
        found = positions >= 0
        ids[:, :width][found] = a["ids"][positions[found]]
        return Hits(ids, scores)

    @contextmanager
    def _workspace(self) -> "Iterator[_Workspace]":
        """Lends one of as many workspaces as there are threads; more callers than that wait, and cost no memory."""
        workspace = self._workspaces.get()
        try:
            if workspace is None:
                documents = self.header.documents
                workspace = _Workspace(np.zeros(documents, np.float64), np.empty(documents, np.int32))
            yield workspace
        finally:
            self._workspaces.put(workspace)

    def _encode(self, texts: Sequence[str]) -> "_Queries":
        offsets, terms, counts = np.zeros(len(texts) + 1, np.int64), [], []
        for position, text in enumerate(texts):
            for term, count in query_terms(text).items():
                number = self._find_term(term)
                if number >= 0:
                    terms.append(number)
                    counts.append(count)
            offsets[position + 1] = len(terms)
        numbers = np.array(terms, np.int64)
        starts = self._arrays["offsets"]
        weights = term_weights(starts[numbers + 1] - starts[numbers], np.array(counts, np.int64), self.header.texts)
        return _Queries(offsets, numbers, weights)

    def _look_up_term(self, term: str) -> int:
        terms, wanted = self._arrays["terms"], np.uint64(term_hash(term, self.header.salt))
        place = int(np.searchsorted(terms, wanted))
        return place if place < len(terms) and terms[place] == wanted else -1

    def _make_mask(self, where: "_FilterKey") -> NDArray[np.bool_]:
        mask = np.ones(self.header.documents, np.bool_)
        for name, values in where.equals:
            mask &= self._matches(name, values)
        if where.exclude_groups:
            mask &= ~self._matches("group", where.exclude_groups)
        if where.exclude_keys:
            mask &= ~self._matches("key", where.exclude_keys)
        if where.exclude_ids:
            ids, excluded = self._arrays["ids"], np.array(where.exclude_ids, np.int64)
            places = np.searchsorted(ids, excluded)
            inside = places < len(ids)
            mask[places[inside][ids[places[inside]] == excluded[inside]]] = False
        return mask

    def _matches(self, name: str, values: Sequence[str]) -> NDArray[np.bool_]:
        column = self._column(name)
        found: NDArray[np.bool_]
        wanted = pa.array(values, pa.large_string())
        if isinstance(column, pa.DictionaryArray):
            chosen = pc.is_in(column.dictionary, value_set=wanted).to_numpy(zero_copy_only=False)
            found = chosen[column.indices.to_numpy()]
        else:
            found = pc.is_in(column, value_set=wanted).to_numpy(zero_copy_only=False)
        return found

    def _column(self, name: str) -> pa.Array:
        stored = name if name in OWN_COLUMNS else f"fields.{name}"
        if stored not in self._columns.column_names:
            known = [known.removeprefix("fields.") for known in self._columns.column_names]
            raise SearchError(f"unknown filter field '{name}': {nearest(name, known)}")
        chunks = self._columns.column(stored).chunks
        return chunks[0] if chunks else pa.array([], pa.large_string())


@dataclass(frozen=True)
class _Workspace:
    """Memory of one running search, 12 bytes a row; a search leaves the zeros as it found them."""

    scores_N: NDArray[np.float64]
    touched_N: NDArray[np.int32]


@dataclass(frozen=True)
class _Queries:
    offsets: NDArray[np.int64]
    terms: NDArray[np.int64]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class _FilterKey:
    """A `Filter` that can be a key of a cache."""

    equals: tuple[tuple[str, tuple[str, ...]], ...]
    exclude_ids: tuple[int, ...]
    exclude_groups: tuple[str, ...]
    exclude_keys: tuple[str, ...]


def _available_threads() -> int:
    """Processors that this process may use, unless OMP_NUM_THREADS (which Ray sets for its workers) says fewer."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(processors, int(wanted)) if wanted.isdigit() and int(wanted) else processors


def _hashable(where: Filter) -> _FilterKey:
    equals = tuple(sorted((name, tuple(values)) for name, values in where.equals.items()))
    return _FilterKey(equals, tuple(where.exclude_ids), tuple(where.exclude_groups), tuple(where.exclude_keys))


def _read_header(folder: Path) -> Header:
    path = folder / "header.json"
    try:
        header = Header(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise CorruptionError(f"{path} is missing: restore the version, or build it anew") from None
    except (ValueError, TypeError) as error:
        raise CorruptionError(f"{path} is damaged ({error}): restore the version, or build it anew") from None
    if header.format != FORMAT or (header.analyzer, header.k1, header.b) != (ANALYZER, K1, B):
        raise VersionError(f"{path} has format {header.format}, not {FORMAT}: upgrade remembrandt, or build anew")
    return header


def _open_array(folder: Path, name: str) -> NDArray[Any]:
    path = folder / f"{name}.npy"
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise CorruptionError(f"{path} is missing: restore the version, or build it anew") from None
    except ValueError:
        array = _load_empty(path)
    return np.asarray(array)


def _load_empty(path: Path) -> NDArray[Any]:
    """An array of length 0 cannot be mapped; any other cause of a ValueError is damage."""
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CorruptionError(f"{path} is damaged ({error}): restore the version, or build it anew") from None
    return array


def _check_sizes(folder: Path, header: Header, arrays: dict[str, NDArray[Any]]) -> None:
    expected = {
        "terms": header.terms,
        "offsets": header.terms + 1,
        "documents": header.postings,
        "counts": header.postings,
        "peaks": header.terms,
        "lengths": header.documents,
        "ids": header.documents,
    }
    for name, length in expected.items():
        if arrays[name].shape != (length,):
            found = f"holds {arrays[name].shape} values instead of {length:,}"
            raise CorruptionError(f"{folder / name}.npy {found}: restore the version, or build it anew")


def _open_columns(folder: Path) -> pa.Table:
    path = folder / "columns.arrow"
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError:
        raise CorruptionError(f"{path} is missing: restore the version, or build it anew") from None
    except pa.ArrowException as error:
        raise CorruptionError(f"{path} is damaged ({error}): restore the version, or build it anew") from None
