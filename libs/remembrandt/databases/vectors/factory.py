"""FAISS index factories: which one suits a row count and a memory budget, and what it costs.

A pure module: it needs no FAISS.
"""

import math
import re
from dataclasses import dataclass

from remembrandt.errors import ConfigError

FLAT_ROWS = 20_000
"""Up to here exact search is as fast as any index and needs no training."""
HNSW_LISTS = 16_384
"""From this many inverted lists on, finding the nearest centroids by a graph beats comparing with all of them."""
TRAIN_ROWS_PER_LIST = 40
SCANN_TREE_ROWS = 100_000
PQ_SIZES = (128, 96, 64, 48, 32, 24, 16, 8)
ID_BYTES = 8
LIST_ENTRY_BYTES = 24
FILE_HEADER_BYTES = 512

_PATTERN = re.compile(
    r"^(?:(?P<opq>OPQ(?P<opq_m>\d+)(?:_(?P<opq_d>\d+))?|PCAR?(?P<pca_d>\d+)),)?"
    r"(?:IVF(?P<lists>\d+)(?:_HNSW(?P<coarse_m>\d+))?,(?P<ivf_codec>Flat|SQfp16|SQ8|SQ6|SQ4|PQ\d+(?:x8)?)"
    r"|HNSW(?P<graph_m>\d+)(?:,(?P<graph_codec>Flat|SQfp16|SQ8))?"
    r"|(?P<codec>Flat|SQfp16|SQ8))$"
)
_KNOWN = "Flat, SQ8, IVF4096,SQfp16, IVF4096,SQ8, OPQ64_256,IVF65536_HNSW32,PQ64, HNSW32,Flat, or 'auto'"


@dataclass(frozen=True)
class Factory:
    """A parsed index factory string.

    Attributes:
        text: the string FAISS understands.
        transform: the pre-transform's part of it, else None.
        transform_dim: the vector size behind the pre-transform; None where it equals the embedding's.
        opq_m: sub-spaces of an OPQ rotation, else None.
        lists: inverted lists, 0 where there are none.
        coarse_m: links a node of the graph over the centroids, 0 where centroids are compared one by one.
        graph_m: links a node of an HNSW index over all rows, 0 for other kinds.
        codec: how a vector is stored: Flat, SQfp16, SQ8, SQ6, SQ4 or PQ<m>.
    """

    text: str
    transform: str | None
    transform_dim: int | None
    opq_m: int | None
    lists: int
    coarse_m: int
    graph_m: int
    codec: str

    @property
    def exact(self) -> bool:
        """True where every row is compared at full precision."""
        return self.codec == "Flat" and not (self.lists or self.graph_m or self.transform)

    @property
    def pq_m(self) -> int:
        """Bytes of a product-quantised code, 0 for other codecs."""
        return int(self.codec.removeprefix("PQ").removesuffix("x8")) if self.codec.startswith("PQ") else 0

    def stored_dim(self, dim: int) -> int:
        """Size of the vectors that are stored for embeddings of size `dim`."""
        return self.transform_dim or dim

    def bytes_per_row(self, dim: int) -> int:
        """Bytes a row occupies: its code, its id in an inverted list, its links in a graph."""
        stored = self.stored_dim(dim)
        per_value = {"Flat": 4.0, "SQfp16": 2.0, "SQ8": 1.0, "SQ6": 0.75, "SQ4": 0.5}
        code = self.pq_m or math.ceil(stored * per_value[self.codec])
        return code + (ID_BYTES if self.lists else 0) + self.graph_m * 8 + (16 if self.graph_m else 0)

    def trained_bytes(self, dim: int) -> int:
        """Bytes of what is shared by all shards: centroids, their graph, the rotation."""
        stored = self.stored_dim(dim)
        graph = self.lists * (self.coarse_m * 8 + 16) if self.coarse_m else 0
        rotation = 4 * stored * dim if self.transform else 0
        return self.lists * 4 * stored + graph + rotation + self.code_book_bytes(dim) + FILE_HEADER_BYTES

    def code_book_bytes(self, dim: int) -> int:
        """Bytes of what decodes a row, which every shard carries."""
        if self.pq_m:
            return 256 * 4 * self.stored_dim(dim)
        return 8 * self.stored_dim(dim) if self.codec in ("SQ8", "SQ6", "SQ4") else 0

    def index_bytes(self, rows: int, dim: int, num_shards: int) -> int:
        """Bytes of the whole index: shards, their list tables, and what they share."""
        tables = num_shards * (self.lists * LIST_ENTRY_BYTES + self.code_book_bytes(dim) + FILE_HEADER_BYTES)
        return rows * self.bytes_per_row(dim) + tables + self.trained_bytes(dim)


def parse_factory(text: str) -> Factory:
    """Reads an index factory string.

    Raises:
        ConfigError: not one of the kinds that shards can share, train and memory-map.
    """
    match = _PATTERN.match(text.strip())
    if match is None:
        raise ConfigError(f"vectors.factory '{text}' cannot be built: write one like {_KNOWN}")
    part = {name: value for name, value in match.groupdict().items() if value is not None}
    opq_m = int(part["opq_m"]) if "opq_m" in part else None
    out = part.get("opq_d") or part.get("pca_d")
    return Factory(
        text=match.string,
        transform=part.get("opq"),
        transform_dim=int(out) if out else None,
        opq_m=opq_m,
        lists=int(part.get("lists", 0)),
        coarse_m=int(part.get("coarse_m", 0)),
        graph_m=int(part.get("graph_m", 0)),
        codec=part.get("ivf_codec") or part.get("codec") or part.get("graph_codec") or "Flat",
    )


def check_factory(factory: Factory, rows: int, dim: int) -> None:
    """Whether `factory` can hold `rows` embeddings of size `dim`.

    Raises:
        ConfigError: sizes that do not divide, or too few rows to train on.
    """
    name, stored = factory.text, factory.stored_dim(dim)
    if stored > dim:
        raise ConfigError(f"vectors.factory '{name}' makes {stored} dimensions out of {dim}: use at most {dim}")
    if factory.opq_m and stored % factory.opq_m:
        raise ConfigError(f"vectors.factory '{name}': OPQ{factory.opq_m} does not divide {stored} dimensions")
    if factory.pq_m and stored % factory.pq_m:
        raise ConfigError(f"vectors.factory '{name}': PQ{factory.pq_m} does not divide {stored} dimensions")
    if factory.lists > rows:
        raise ConfigError(
            f"vectors.factory '{name}' needs at least {factory.lists:,} rows to train its lists, the database has "
            f"{rows:,}: use fewer lists or 'auto'"
        )
    if factory.pq_m and rows < 256:
        raise ConfigError(f"vectors.factory '{name}' needs at least 256 rows to train on, the database has {rows:,}")


def num_lists(rows: int) -> int:
    """Inverted lists for a row count: the power of two nearest to 4·√rows.

    More above ten million rows, where training more centroids is worth the shorter lists.
    """
    if rows >= 300_000_000:
        return 1_048_576
    if rows >= 30_000_000:
        return 262_144
    if rows >= 10_000_000:
        return 65_536
    return int(2 ** round(math.log2(4 * math.sqrt(max(rows, 16)))))


def num_leaves(rows: int) -> int:
    """ScaNN's partitions for a row count, 0 for none (its authors' advice)."""
    return round(rows**0.5) if rows >= SCANN_TREE_ROWS else 0


def factories_for(rows: int, dim: int) -> list[str]:
    """Factories that suit a row count, from the most precise to the smallest.

    Half-precision codes replace full-precision ones above `FLAT_ROWS`: the row store holds fp16 too, recall differs
    by less than 0.0002, and half the memory is read a query. Product codes below one byte for 16 dimensions are left
    out: too few of the nearest rows are among the candidates that are ranked again.
    """
    if rows <= FLAT_ROWS:
        return ["Flat"]
    lists = num_lists(rows)
    coarse = f"IVF{lists}_HNSW32" if lists >= HNSW_LISTS else f"IVF{lists}"
    sizes = [m for m in PQ_SIZES if 4 * m <= dim <= 16 * m] or [PQ_SIZES[-1]]
    quantised = [f"OPQ{m}_{4 * m},{coarse},PQ{m}" for m in sizes]
    return [f"{coarse},SQfp16", f"{coarse},SQ8", *quantised]


def choose_factory(rows: int, dim: int, memory: int, num_shards: int) -> tuple[Factory, bool]:
    """The most precise factory whose index fits into `memory` bytes, else the smallest; and whether it fits."""
    for text in factories_for(rows, dim):
        factory = parse_factory(text)
        if factory.index_bytes(rows, dim, num_shards) <= memory:
            return factory, True
    return factory, False
