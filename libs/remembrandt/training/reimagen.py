"""Training the stages of Re-Imagen: what the job's file says, and what a worker is built from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, model_validator

from remembrandt.configuration import Config
from remembrandt.databases.database import Database
from remembrandt.encoders.text import TextConfig, open_text_encoder, text_fingerprint, text_shape
from remembrandt.errors import ConfigError
from remembrandt.generation.models import model_folder
from remembrandt.models.folders import read_facts
from remembrandt.models.reimagen.config import StageConfig
from remembrandt.models.reimagen.model import ReImagenUNet
from remembrandt.models.reimagen.objective import StageLossConfig, StageObjective
from remembrandt.models.reimagen.sampling import KIND
from remembrandt.progress import format_bytes, say
from remembrandt.retrieval import RetrievalPool
from remembrandt.storage import open_store
from remembrandt.training.config import LoopConfig
from remembrandt.training.feeds.cache import CacheConfig, ExampleCache, fill_cache
from remembrandt.training.feeds.neighbors import (
    NeighborsConfig,
    check_encoders,
    check_enough,
    describe_search,
    open_neighbors,
    open_precomputed,
    start_pool,
)
from remembrandt.training.feeds.pairs import PairFeed, PairRows
from remembrandt.training.feeds.train_set import RowsConfig, TrainSet
from remembrandt.training.memory import GPUS, state_bytes
from remembrandt.training.run import connect_for_training, train


class StageRunConfig(Config):
    """One stage's network, what is drawn for an example, and its training loop."""

    model: StageConfig
    loss: StageLossConfig = StageLossConfig()
    loop: LoopConfig = LoopConfig()


class TrainReimagenConfig(Config):
    """One run of `jobs/train_reimagen.py`.

    Attributes:
        name: of the run; stage 64 is `<name>-64`. The same name and storage go on with a run that was interrupted.
        storage: path or URI for checkpoints, figures and sample grids.
        output: path or URI for the finished stages: `<output>/64`, ….
        train_set: X, pairs of image and caption.
        neighbors: D and how it is searched; P2 searches X itself by BM25, without the pair, its copies and its group.
        text: the frozen encoder of captions.
        cache: path or URI for pixels and token states of X and D.
        cache_pixels: whether pictures are decoded once and kept, 3·S² bytes each; else they are decoded when needed.
        cache_text: whether token states are kept, 2·L·D bytes each; else captions are encoded when needed.
        stages: by the edge of what they draw.
    """

    name: str
    storage: str
    output: str
    train_set: RowsConfig
    neighbors: NeighborsConfig
    text: TextConfig
    cache: str
    cache_pixels: bool = True
    cache_text: bool = True
    stages: dict[int, StageRunConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> "TrainReimagenConfig":
        for size, stage in self.stages.items():
            if stage.model.size != size:
                raise ValueError(f"stages.{size}.model.size is {stage.model.size}: set it to {size}")
            if stage.model.num_neighbors != self.neighbors.num_neighbors:
                raise ValueError(
                    f"stages.{size}.model.num_neighbors is {stage.model.num_neighbors}, and neighbors.num_neighbors "
                    f"{self.neighbors.num_neighbors}: set them to the same"
                )
        if not self.neighbors.exclude.same_key:
            raise ValueError("neighbors.exclude.same_key must be true: a pair's own picture would be copied")
        return self


@dataclass(frozen=True)
class StageJob:
    """A `TrainJob`; versions are pinned, and the pool runs."""

    config: TrainReimagenConfig
    size: int
    pool: RetrievalPool | None

    @property
    def stage(self) -> StageRunConfig:
        """The stage that is trained."""
        return self.config.stages[self.size]

    @property
    def name(self) -> str:
        """Of the run."""
        return f"{self.config.name}-{self.size}"

    @property
    def storage(self) -> str:
        """Of checkpoints."""
        return self.config.storage

    @property
    def output(self) -> str:
        """Of the finished stage."""
        return f"{self.config.output.rstrip('/')}/{self.size}"

    @property
    def loop(self) -> LoopConfig:
        """The loop's configuration."""
        return self.stage.loop

    def settings(self) -> Mapping[str, Any]:
        """The configuration of this stage alone."""
        whole = self.config.model_dump(mode="json", exclude={"stages"})
        return {**whole, **self.stage.model_dump(mode="json")}

    def build(self, device: torch.device) -> tuple[StageObjective, PairFeed]:
        """Opens train set, database, caches and text encoder in a worker."""
        config, stage = self.config, self.stage
        train_set, database = TrainSet.open(config.train_set), open_database(config)
        neighbors = open_neighbors(config.neighbors, train_set, database, self.pool)
        examples = _pair_rows(config, config.train_set, stage.model.size)
        candidates = _pair_rows(config, config.neighbors.database, stage.model.neighbor_edge)
        feed = PairFeed(examples, candidates, neighbors, database, identity_of(config, train_set, database))
        return StageObjective(stage.model, stage.loss, facts_of(config, train_set, database)), feed


def train_reimagen(config: TrainReimagenConfig, stage: str = "all", *, dry_run: bool = False) -> dict[str, Any]:
    """Checks, caches, starts the pool, trains one stage or all, one after the other; returns their reports by size.

    Raises:
        RemembrandtError: whatever of the configuration cannot work, before anything is computed.
    """
    sizes = _sizes(config, stage)
    train_set, database = TrainSet.open(config.train_set), open_database(config)
    check(config, train_set, database)
    config = pin(config, train_set, database)
    if dry_run:
        return {str(size): describe(config, size, train_set) for size in sizes} | {"dry_run": True}
    connect_for_training()
    for cache in caches(config, sizes):
        fill_cache(cache, TrainSet.open(cache.train_set))
    pool = start_pool(config.neighbors)
    try:
        return {str(size): train(StageJob(config, size, pool)) for size in sizes}
    finally:
        if pool is not None:
            pool.close()


def check(config: TrainReimagenConfig, train_set: TrainSet, database: Database) -> None:
    """Raises what a worker would find only later."""
    dim, _ = text_shape(config.text)
    for size, stage in config.stages.items():
        if stage.model.text_dim != dim:
            raise ConfigError(
                f"stages.{size}.model.text_dim is {stage.model.text_dim}, and the text encoder's tokens have {dim}: "
                f"set it to {dim}"
            )
        if stage.loop.init_from is not None:
            read_facts(model_folder(stage.loop.init_from), KIND)
    open_store(config.output).check_writable()
    open_store(config.storage).check_writable()
    check_enough(config.neighbors, database)
    if config.neighbors.similarity == "clip":
        check_encoders(train_set, database)
    elif database.manifest.bm25 is None:
        raise ConfigError(f"database '{database.name}' was built without BM25: build it anew, or use similarity: clip")
    if config.neighbors.mode == "precomputed":
        open_precomputed(config.neighbors, train_set, database)


def pin(config: TrainReimagenConfig, train_set: TrainSet, database: Database) -> TrainReimagenConfig:
    """Names the versions that are live now, so that every worker and every resumption opens the same."""
    rows = config.neighbors.database.model_copy(update={"version": database.version})
    return config.model_copy(
        update={
            "train_set": config.train_set.model_copy(update={"version": train_set.database.version}),
            "neighbors": config.neighbors.model_copy(update={"database": rows}),
        }
    )


def caches(config: TrainReimagenConfig, sizes: list[int]) -> list[CacheConfig]:
    """Everything that is to be computed before training, each once."""
    wanted: dict[str, CacheConfig] = {}
    for size in sizes:
        model = config.stages[size].model
        for rows, edge in ((config.train_set, model.size), (config.neighbors.database, model.neighbor_edge)):
            for cache in filter(None, (pixel_cache(config, rows, edge), token_cache(config, rows))):
                wanted[repr(cache)] = cache
    return list(wanted.values())


def pixel_cache(config: TrainReimagenConfig, rows: RowsConfig, size: int) -> CacheConfig | None:
    """Where pictures of rows lie."""
    return CacheConfig(config.cache, rows, size) if config.cache_pixels else None


def token_cache(config: TrainReimagenConfig, rows: RowsConfig) -> CacheConfig | None:
    """Where token states of captions lie."""
    return CacheConfig(config.cache, rows, 0, text=config.text) if config.cache_text else None


def open_database(config: TrainReimagenConfig) -> Database:
    """D, for pictures and captions of rows; searching is the pool's."""
    rows = config.neighbors.database
    return Database.open(rows.uri, version=rows.version)


def identity_of(config: TrainReimagenConfig, train_set: TrainSet, database: Database) -> dict[str, str]:
    """What a loss depends on beside the configuration."""
    return {
        "train set": train_set.identity,
        "text encoder": text_fingerprint(config.text),
        "database": f"{database.name}/{database.version}",
        "neighbours": describe_search(config.neighbors),
    }


def facts_of(config: TrainReimagenConfig, train_set: TrainSet, database: Database) -> dict[str, object]:
    """What a finished stage's folder says of its training."""
    manifest = train_set.database.manifest
    return {
        "train_set": {"name": manifest.name, "version": manifest.version, "where": config.train_set.where},
        "database": {"name": database.name, "version": database.version},
        "neighbors": config.neighbors.model_dump(mode="json", include={"similarity", "num_neighbors", "exclude"}),
        "text": config.text.model_dump(mode="json"),
        "text_fingerprint": text_fingerprint(config.text),
    }


def describe(config: TrainReimagenConfig, size: int, train_set: TrainSet) -> dict[str, Any]:
    """What a run of a stage would do."""
    stage = config.stages[size]
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in ReImagenUNet(stage.model).parameters())
    epochs = stage.loop.steps * stage.loop.batch_size / len(train_set)
    states = state_bytes(parameters, stage.loop)
    memory = {str(gpus): states.per_gpu(gpus, stage.loop.sharding) for gpus in GPUS}
    shown = ", ".join(f"{format_bytes(needed)} on {gpus}" for gpus, needed in memory.items())
    say(
        f"stage {size}: would train {parameters / 1e6:.1f} M parameters for {stage.loop.steps:,} steps of "
        f"{stage.loop.batch_size} on {len(train_set):,} pairs ({epochs:.1f} epochs) on {stage.loop.workers} worker(s)"
    )
    say(f"stage {size}: states at ZeRO {stage.loop.sharding}, without activations: {shown} GPU(s), each")
    return {
        "parameters": parameters,
        "pairs": len(train_set),
        "steps": stage.loop.steps,
        "epochs": epochs,
        "bytes_per_gpu": memory,
    }


def _sizes(config: TrainReimagenConfig, stage: str) -> list[int]:
    if stage == "all":
        return sorted(config.stages)
    known = {str(size): size for size in config.stages}
    if stage not in known:
        raise ConfigError(f"--stage {stage}: the file has {', '.join(sorted(known))}; name one of them, or all")
    return [known[stage]]


def _pair_rows(config: TrainReimagenConfig, rows: RowsConfig, size: int) -> PairRows:
    opened = TrainSet.open(rows)
    pixels, tokens = pixel_cache(config, rows, size), token_cache(config, rows)
    return PairRows(
        opened,
        size,
        None if pixels is None else ExampleCache.open(pixels, opened),
        None if tokens is None else ExampleCache.open(tokens, opened),
        open_text_encoder(config.text) if tokens is None else None,
    )
