"""Training RDM, or its baseline without retrieval: what the job's file says, and what a worker is built from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import model_validator

from remembrandt.configuration import Config
from remembrandt.databases.database import Database
from remembrandt.errors import ConfigError
from remembrandt.generation.models import model_folder
from remembrandt.models.first_stage.model import FirstStage
from remembrandt.models.folders import read_facts
from remembrandt.models.rdm.config import RdmConfig
from remembrandt.models.rdm.model import build_unet, num_parameters
from remembrandt.models.rdm.objective import RdmObjective
from remembrandt.progress import say
from remembrandt.retrieval import RetrievalPool
from remembrandt.storage import open_store
from remembrandt.training.config import LoopConfig
from remembrandt.training.feeds.cache import CacheConfig, ExampleCache, fill_cache, first_stage_fingerprint
from remembrandt.training.feeds.neighbors import (
    NeighborsConfig,
    NeighborSource,
    check_disjoint,
    check_encoders,
    check_enough,
    describe_search,
    open_neighbors,
    open_precomputed,
    start_pool,
)
from remembrandt.training.feeds.rdm import CodesOfRows, RdmFeed
from remembrandt.training.feeds.train_set import RowsConfig, TrainSet
from remembrandt.training.run import connect_for_training, train


class TrainRdmConfig(Config):
    """One run of `jobs/train_rdm.py`.

    Attributes:
        name: of the run; the same name and storage go on with a run that was interrupted.
        storage: path or URI for checkpoints, figures and sample grids.
        output: path or URI for the finished model.
        train_set: X.
        neighbors: D and how it is searched; without it the model must be the baseline (`model.condition: none`).
        first_stage: folder of an autoencoder.
        cache: path or URI for the latents of X, and for the codes of D.
        codes: folder of φ, a VQGAN, where `model.codes_size` says that neighbours' codes are the context.
        allow_overlap: whether D may have images of X (RDM-IN of P1); then `neighbors.exclude` keeps an example from
            being its own neighbour.
        model: the network.
        loop: the training loop.
    """

    name: str
    storage: str
    output: str
    train_set: RowsConfig
    first_stage: str
    model: RdmConfig
    cache: str
    neighbors: NeighborsConfig | None = None
    codes: str | None = None
    allow_overlap: bool = False
    loop: LoopConfig = LoopConfig()

    @model_validator(mode="after")
    def _conditioned(self) -> "TrainRdmConfig":
        if (self.neighbors is None) != (self.model.condition == "none"):
            raise ValueError("model.condition 'cross' needs `neighbors`, and 'none' takes none")
        if (self.codes is None) != (self.model.codes_size is None):
            raise ValueError("`codes`, the folder of a VQGAN, and model.codes_size go together")
        return self


@dataclass(frozen=True)
class RdmJob:
    """A `TrainJob`; versions are pinned, and the pool runs."""

    config: TrainRdmConfig
    pool: RetrievalPool | None

    @property
    def name(self) -> str:
        """Of the run."""
        return self.config.name

    @property
    def storage(self) -> str:
        """Of checkpoints."""
        return self.config.storage

    @property
    def output(self) -> str:
        """Of the finished model."""
        return self.config.output

    @property
    def loop(self) -> LoopConfig:
        """The loop's configuration."""
        return self.config.loop

    def settings(self) -> Mapping[str, Any]:
        """The whole configuration."""
        return self.config.model_dump(mode="json")

    def build(self, device: torch.device) -> tuple[RdmObjective, RdmFeed]:
        """Opens train set, latents and database in a worker."""
        config = self.config
        train_set = TrainSet.open(config.train_set)
        latents = ExampleCache.open(latent_cache(config), train_set)
        database = open_database(config)
        neighbors: NeighborSource | None = None
        if config.neighbors is not None and database is not None:
            neighbors = open_neighbors(config.neighbors, train_set, database, self.pool)
        stage = FirstStage.load(model_folder(config.first_stage)).to(device)
        identity = identity_of(config, train_set, database)
        codes = phi = None
        if (kept := code_cache(config)) is not None and config.codes is not None:
            rows = TrainSet.open(kept.train_set)
            codes, phi = (
                CodesOfRows(rows.ids_N, ExampleCache.open(kept, rows)),
                FirstStage.load(model_folder(config.codes)),
            )
        feed = RdmFeed(train_set, latents, neighbors, database, identity, codes)
        return RdmObjective(config.model, stage, facts_of(config, train_set, database), phi), feed


def train_rdm(config: TrainRdmConfig, *, dry_run: bool = False) -> dict[str, Any]:
    """Checks, caches latents, starts the pool, trains; returns the finished model's report.

    Raises:
        RemembrandtError: whatever of the configuration cannot work, before anything is computed.
    """
    train_set = TrainSet.open(config.train_set)
    database = open_database(config)
    check(config, train_set, database)
    config = pin(config, train_set, database)
    if dry_run:
        return describe(config, train_set, database)
    connect_for_training()
    fill_cache(latent_cache(config), train_set)
    if (codes := code_cache(config)) is not None:
        fill_cache(codes, TrainSet.open(codes.train_set))
    pool = start_pool(config.neighbors)
    try:
        return train(RdmJob(config, pool))
    finally:
        if pool is not None:
            pool.close()


def check(config: TrainRdmConfig, train_set: TrainSet, database: Database | None) -> None:
    """Raises what a worker would find only later."""
    stage, model = FirstStage.load(model_folder(config.first_stage)), config.model
    if stage.latent_channels != model.latent_channels:
        raise ConfigError(
            f"the first stage {config.first_stage} has {stage.latent_channels} latent channels, and "
            f"model.latent_channels is {model.latent_channels}: set them to the same"
        )
    open_store(config.output).check_writable()
    open_store(config.storage).check_writable()
    if config.loop.init_from is not None:
        read_facts(model_folder(config.loop.init_from), "rdm")
    if config.neighbors is None or database is None:
        return
    check_encoders(train_set, database)
    if config.codes is not None:
        wanted = FirstStage.load(model_folder(config.codes)).latent_channels * config.neighbors.num_neighbors
        if model.context_dim != wanted:
            raise ConfigError(
                f"model.context_dim is {model.context_dim}, and the codes of {config.neighbors.num_neighbors} "
                f"neighbours have {wanted} channels: set it to {wanted}"
            )
    elif model.context_dim != database.dim:
        raise ConfigError(
            f"model.context_dim is {model.context_dim}, and database '{database.name}' has embeddings of "
            f"{database.dim}: set it to {database.dim}"
        )
    check_enough(config.neighbors, database)
    if config.neighbors.same is not None:
        for rows in (train_set.database, database):
            rows.rows([0], [config.neighbors.same.column])
    if not config.allow_overlap:
        check_disjoint(train_set, database, config.neighbors.database)
    if config.neighbors.mode == "precomputed":
        open_precomputed(config.neighbors, train_set, database)


def pin(config: TrainRdmConfig, train_set: TrainSet, database: Database | None) -> TrainRdmConfig:
    """Names the versions that are live now, so that every worker and every resumption opens the same."""
    update: dict[str, Any] = {"train_set": config.train_set.model_copy(update={"version": train_set.database.version})}
    if config.neighbors is not None and database is not None:
        rows = config.neighbors.database.model_copy(update={"version": database.version})
        update["neighbors"] = config.neighbors.model_copy(update={"database": rows})
    return config.model_copy(update=update)


def open_database(config: TrainRdmConfig) -> Database | None:
    """D, for embeddings and pictures of rows; searching is the pool's."""
    if config.neighbors is None:
        return None
    rows = config.neighbors.database
    return Database.open(rows.uri, version=rows.version)


def latent_cache(config: TrainRdmConfig) -> CacheConfig:
    """Where the latents of X lie."""
    factor = FirstStage.load(model_folder(config.first_stage)).factor
    return CacheConfig(config.cache, config.train_set, config.model.latent_size * factor, config.first_stage)


def code_cache(config: TrainRdmConfig) -> CacheConfig | None:
    """Where the codes of D lie, if they are the context."""
    if config.codes is None or config.neighbors is None or config.model.codes_size is None:
        return None
    return CacheConfig(config.cache, config.neighbors.database, config.model.codes_size, config.codes)


def identity_of(config: TrainRdmConfig, train_set: TrainSet, database: Database | None) -> dict[str, str]:
    """What a loss depends on beside the configuration."""
    identity = {
        "train set": train_set.identity,
        "first stage": first_stage_fingerprint(config.first_stage),
    }
    if config.codes is not None:
        identity["codes"] = first_stage_fingerprint(config.codes)
    if config.neighbors is not None and database is not None:
        identity["database"] = f"{database.name}/{database.version}"
        identity["neighbours"] = describe_search(config.neighbors)
    return identity


def facts_of(config: TrainRdmConfig, train_set: TrainSet, database: Database | None) -> dict[str, object]:
    """What a finished model's folder says of its training."""
    manifest = train_set.database.manifest
    facts: dict[str, object] = {
        "train_set": {"name": manifest.name, "version": manifest.version, "where": config.train_set.where},
        "first_stage": first_stage_fingerprint(config.first_stage),
    }
    if config.neighbors is not None and database is not None:
        facts["encoder"] = database.manifest.encoder
        facts["num_neighbors"] = config.neighbors.num_neighbors
        facts["database"] = {"name": database.name, "version": database.version}
    return facts


def describe(config: TrainRdmConfig, train_set: TrainSet, database: Database | None) -> dict[str, Any]:
    """What a run would do."""
    with torch.device("meta"):
        parameters = num_parameters(build_unet(config.model))
    epochs = config.loop.steps * config.loop.batch_size / len(train_set)
    say(
        f"would train {parameters / 1e6:.1f} M parameters for {config.loop.steps:,} steps of {config.loop.batch_size} "
        f"on {len(train_set):,} examples ({epochs:.1f} epochs) on {config.loop.workers} worker(s), and write "
        f"{config.output}"
    )
    rows = len(database.select(config.neighbors.database.filter)) if config.neighbors and database else 0
    return {
        "dry_run": True,
        "parameters": parameters,
        "examples": len(train_set),
        "database_rows": rows,
        "steps": config.loop.steps,
        "epochs": epochs,
        "output": config.output,
    }
