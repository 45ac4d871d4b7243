"""Training workers without Ray: plain processes that talk through gloo, for many short runs in a row."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from remembrandt.configuration import parse_config
from remembrandt.distributed import connect
from remembrandt.retrieval import RetrievalPool
from remembrandt.storage import open_store
from remembrandt.training.feeds.cache import CacheConfig, fill_cache
from remembrandt.training.feeds.neighbors import start_pool
from remembrandt.training.feeds.train_set import TrainSet
from remembrandt.training.job import TrainJob
from remembrandt.training.journal import read_journal
from remembrandt.training.loop import Trainer
from remembrandt.training.rdm import RdmJob, TrainRdmConfig, code_cache, latent_cache
from remembrandt.training.reimagen import StageJob, TrainReimagenConfig, caches
from tests.support.processes import free_ports

Runs = list[dict[str, Any]]


def train_all(runs: Runs, workers: int) -> list[list[float]]:
    """Trains every configuration with that many workers; the losses of each, step by step."""
    for values in runs:
        for cache in caches_of(values):
            fill_cache(cache, TrainSet.open(cache.train_set))
    (port,) = free_ports(1)
    mp.start_processes(_work, (runs, workers, port), nprocs=workers, start_method="spawn")
    return [losses_of(f"{run['storage']}/{job_of(run, None).name}") for run in runs]


def _work(rank: int, runs: Runs, workers: int, port: int) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers), "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    for values in runs:
        pool = live_pool(values)
        job: TrainJob = job_of(values, pool)
        objective, feed = job.build(torch.device("cpu"))
        kept = Path(values["storage"]) / "checkpoints" / values["name"]

        def keep(folder: Path, step: int, kept: Path = kept) -> None:
            shutil.copytree(folder, kept / f"{step}", dirs_exist_ok=True)
            shutil.rmtree(folder)
            dist.barrier()

        trainer = Trainer(job, objective, feed, torch.device("cpu"), rank, keep)
        trainer.run()
        if pool is not None:
            pool.close()
    dist.destroy_process_group()


def job_of(values: dict[str, Any], pool: RetrievalPool | None) -> RdmJob | StageJob:
    """A run of RDM; or of a stage of Re-Imagen: `stage` names it, beside the configuration."""
    if "stages" not in values:
        return RdmJob(parse_config(TrainRdmConfig, values, "test"), pool)
    return StageJob(reimagen_config(values), values["stage"], pool)


def reimagen_config(values: dict[str, Any]) -> TrainReimagenConfig:
    """Without `stage`."""
    return parse_config(TrainReimagenConfig, {k: v for k, v in values.items() if k != "stage"}, "test")


def caches_of(values: dict[str, Any]) -> list[CacheConfig]:
    """What a run reads."""
    if "stages" in values:
        return caches(reimagen_config(values), [values["stage"]])
    config = parse_config(TrainRdmConfig, values, "test")
    return [cache for cache in (latent_cache(config), code_cache(config)) if cache is not None]


def live_pool(values: dict[str, Any]) -> RetrievalPool | None:
    """What live retrieval asks, in the cluster that the environment names."""
    neighbors = job_of(values, None).config.neighbors
    if neighbors is None or neighbors.mode == "precomputed":
        return None
    connect()
    return start_pool(neighbors)


def losses_of(uri: str) -> list[float]:
    """Of every step of a run, in order."""
    return [line["loss"] for line in read_journal(open_store(uri))]
