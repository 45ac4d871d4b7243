"""ScaNN behind the same interface as FAISS: one shard, in memory, on one machine (P1's choice).

ScaNN trains on the rows it holds, so there is nothing to share between shards. It writes a folder; a shard is that
folder in one uncompressed tar, so that it has one checksum like every other shard.

Letters in names: B queries, D embedding, M candidates, N rows.
"""

import os
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remembrandt.databases.hits import PAD_ID
from remembrandt.databases.vectors.config import VectorPlan
from remembrandt.databases.vectors.factory import Factory, num_leaves
from remembrandt.databases.vectors.runtime import num_threads
from remembrandt.databases.vectors.shards import Candidates, Probe, Selection, ShardFile
from remembrandt.errors import ConfigError, CorruptionError, StorageError

BRUTE_FORCE_ROWS = 20_000
"""Below this, ScaNN's authors advise comparing with every row."""
DIMENSIONS_PER_BLOCK = 2
ANISOTROPIC_THRESHOLD = 0.2
TREE_TRAIN_ROWS = 100_000
CODE_TRAIN_ROWS = 20_000
MIN_REORDER = 100
REORDER_SHARE = 6


def import_scann() -> ModuleType:
    """The `scann` module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module("scann")
    except ImportError:
        raise ConfigError("ScaNN is not installed: install remembrandt[scann], or use vectors.backend=faiss") from None


def scann_kind(plan: VectorPlan) -> Factory:
    """A ScaNN index in the terms of a factory: its partitions are the lists."""
    return Factory(plan.factory, None, None, None, num_leaves(plan.rows), 0, 0, "AH")


def build_scann_shard(plan: VectorPlan, batches: Iterator[NDArray[np.float32]], target: Path) -> int:
    """Trains and writes an index over all rows; they are held in memory.

    Returns:
        Rows written.

    Raises:
        ConfigError: ScaNN is not installed.
        StorageError: `target` cannot be written.
    """
    scann = import_scann()
    vectors_ND = np.empty((plan.shard_rows, plan.dim), dtype=np.float32)
    rows = 0
    for batch in batches:
        vectors_ND[rows : rows + len(batch)] = batch
        rows += len(batch)
    builder = scann.scann_ops_pybind.builder(vectors_ND[:rows], 20, "dot_product").set_n_training_threads(num_threads())
    if num_leaves(rows):
        builder = builder.tree(
            num_leaves=num_leaves(rows), num_leaves_to_search=max(1, plan.nprobe), training_sample_size=TREE_TRAIN_ROWS
        )
    if rows < BRUTE_FORCE_ROWS:
        builder = builder.score_brute_force()
    else:
        builder = builder.score_ah(
            DIMENSIONS_PER_BLOCK,
            anisotropic_quantization_threshold=ANISOTROPIC_THRESHOLD,
            training_sample_size=CODE_TRAIN_ROWS,
        )
        builder = builder.reorder(MIN_REORDER)
    _pack(builder.build(), target)
    return rows


class ScannShard:
    """A ScaNN searcher over the rows of one shard."""

    def __init__(self, file: ShardFile) -> None:
        """Reads the shard.

        Raises:
            ConfigError: ScaNN is not installed.
            CorruptionError: missing or unreadable.
        """
        self.file, self._searcher = file, _unpack(file.path)
        if int(self._searcher.size()) != file.rows:
            raise CorruptionError(f"{file.path} holds {self._searcher.size():,} rows, not {file.rows:,}: restore it")

    def search(self, probe: Probe, m: int, selection: Selection | None) -> Candidates:
        """Visits the nearest partitions. ScaNN knows no masks: more candidates are asked for until enough pass."""
        leaves = probe.effort.nprobe or -1
        if selection is None:
            return self._search(probe.queries_BD, m, leaves)
        wanted = min(self.file.rows, max(2 * m, 2 * m * self.file.rows // selection.count))
        while True:
            scores, positions = self._search(probe.queries_BD, wanted, leaves)
            allowed = (positions != PAD_ID) & selection.allowed_N[np.maximum(positions, 0)]
            if wanted == self.file.rows or (allowed.sum(axis=1) >= m).all():
                break
            if not probe.effort.everything and (positions[:, -1] == PAD_ID).all():
                break
            wanted = min(self.file.rows, 4 * wanted)
        order = np.argsort(~allowed, axis=1, kind="stable")[:, :m]
        kept = np.take_along_axis(allowed, order, axis=1)
        positions = np.where(kept, np.take_along_axis(positions, order, axis=1), PAD_ID)
        return np.where(kept, np.take_along_axis(scores, order, axis=1), np.float32(-np.inf)), positions

    def _search(self, queries_BD: NDArray[np.float32], m: int, leaves: int) -> Candidates:
        reorder = min(self.file.rows, max(MIN_REORDER, REORDER_SHARE * m))
        ids, scores = self._searcher.search_batched(queries_BD, m, reorder, leaves)
        missing = np.isnan(scores)
        return np.where(missing, np.float32(-np.inf), scores), np.where(missing, PAD_ID, ids.astype(np.int64))


def _pack(searcher: Any, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            searcher.serialize(folder, relative_path=True)
            with tarfile.open(temporary, "w") as archive:
                for path in sorted(Path(folder).iterdir()):
                    archive.add(path, arcname=path.name, filter=_without_owner)
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"cannot write {target} ({error}): check space and permissions") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _unpack(path: Path) -> Any:
    scann = import_scann()
    try:
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
            return scann.scann_ops_pybind.load_searcher(folder)
    except (OSError, RuntimeError, ValueError, tarfile.TarError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CorruptionError(f"{path} is not a readable ScaNN index ({reason}): restore it or rebuild") from None


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same rows give the same archive, whoever writes it and when."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry
