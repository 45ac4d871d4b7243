"""Training speed of the small RDM: our loop against a plain PyTorch loop, and live retrieval against precomputed.

    python -m tests.benchmarks.bench_training --database .demo/databases/emoji --first-stage FOLDER [--steps 30]

Live retrieval is measured from that database and from one of a million rows: its embeddings, and others scattered
around them. All loops train the same U-Net with the same batch and precision in this process, in turns; a step's time
is the median over all rounds. The plain loop has everything in memory, draws its noise with torch.randn, and does
nothing else.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import yaml

from remembrandt.configuration import parse_config
from remembrandt.databases.build import build_database
from remembrandt.databases.config import BuildConfig
from remembrandt.databases.database import Database
from remembrandt.databases.neighbors import PrecomputeConfig, precompute_neighbors
from remembrandt.distributed import connect
from remembrandt.models.rdm.model import build_unet, run_unet
from remembrandt.retrieval import RetrievalPool
from remembrandt.training.feeding import Fed
from remembrandt.training.feeds.cache import fill_cache
from remembrandt.training.feeds.train_set import TrainSet
from remembrandt.training.job import TrainJob
from remembrandt.training.loop import Trainer
from remembrandt.training.rdm import RdmJob, TrainRdmConfig, latent_cache
from tests.benchmarks.bench_sampling import random_model
from tests.benchmarks.report import table, write_report
from tests.support.processes import free_ports

CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "train_rdm" / "small.yaml"
WARM_UP, ROUNDS = 4, 3
MILLION, PART = 1_000_000, 100_000


@dataclass
class TimedTrainer(Trainer):
    """Notes when each step begins; leaves out checkpoints and the finished model."""

    starts: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def _advance(self, feds: list[Fed]) -> torch.Tensor:
        self.starts.append(time.perf_counter())
        self.waits.append(sum(fed.retrieval_wait_seconds for fed in feds))
        return super()._advance(feds)

    def _checkpoint(self) -> None:
        return

    def _finish(self) -> None:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", default=".demo/databases/emoji")
    parser.add_argument("--first-stage", help="folder; a random one if absent: speed does not depend on it")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "MASTER_ADDR": "127.0.0.1",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
    }
    os.environ["MASTER_PORT"] = str(free_ports(1)[0])
    torch.set_num_threads(2)
    connect()
    dist.init_process_group("gloo", rank=0, world_size=1)
    with tempfile.TemporaryDirectory() as scratch:
        rows, waits = measure(arguments, Path(scratch))
    seconds = {row["loop"]: row["seconds"] for row in rows}
    text = (
        f"Median step of {arguments.steps} × {ROUNDS} (batch 64, bf16 autocast, 2 threads). Live over precomputed: "
        f"**{seconds['live'] / seconds['precomputed']:.3f}**, from a million rows "
        f"**{seconds['live, 1M rows'] / seconds['precomputed']:.3f}**; images/s of ours (precomputed) over the plain "
        f"loop: **{seconds['plain'] / seconds['precomputed']:.3f}**. Median wait for live neighbours: "
        f"{waits * 1000:.2f} ms."
    )
    shown = [
        {"loop": row["loop"], "ms a step": f"{row['seconds'] * 1000:.1f}", "images/s": f"{64 / row['seconds']:.1f}"}
        for row in rows
    ]
    path = write_report(
        "training", "Training", "make bench", ("torch", "deepspeed", "diffusers", "ray"), [table(shown), text]
    )
    print(path.read_text())


def measure(arguments: argparse.Namespace, scratch: Path) -> tuple[list[dict[str, Any]], float]:
    """Step times of the three loops, and the median wait of the live one."""
    values = yaml.safe_load(CONFIG.read_text())
    database = {**values["train_set"], "uri": arguments.database}
    asked = values["neighbors"]
    search = {"num_neighbors": 4, "exclude": asked["exclude"], "same": asked["same"], "where": database["where"]}
    found = {
        "database": arguments.database,
        "train_set": {"kind": "database", "uri": arguments.database},
        "out": str(scratch / "neighbors"),
        "search": search,
    }
    precompute_neighbors(parse_config(PrecomputeConfig, found, "bench"))
    values |= {
        "train_set": database,
        "first_stage": arguments.first_stage or str(random_model(scratch / "random") / "first_stage"),
        "cache": str(scratch / "cache"),
        "storage": str(scratch / "runs"),
        "output": str(scratch / "model"),
        "loop": {
            **values["loop"],
            "steps": WARM_UP + arguments.steps,
            "log_every": 10,
            "checkpoint_every": 10**6,
            "sample_every": 0,
        },
    }
    live = {**values, "name": "live", "neighbors": {**values["neighbors"], "database": database}}
    disk = {
        **live,
        "name": "precomputed",
        "neighbors": {**live["neighbors"], "mode": "precomputed", "precomputed": found["out"], "pool": {}},
    }
    million = million_rows(arguments.database, scratch)
    far = {**values["neighbors"], "database": {"uri": million}, "same": None}
    large = {**live, "name": "million", "neighbors": far}
    configs = {
        name: parse_config(TrainRdmConfig, v, "bench")
        for name, v in {"live": live, "precomputed": disk, "live, 1M rows": large}.items()
    }
    fill_cache(latent_cache(configs["live"]), TrainSet.open(configs["live"].train_set))
    times: dict[str, list[float]] = {name: [] for name in ("plain", "precomputed", "live", "live, 1M rows")}
    waits: list[float] = []
    with (
        RetrievalPool.start(arguments.database, num_cpus=0.25) as pool,
        RetrievalPool.start(million, num_cpus=0.25) as large_pool,
    ):
        for _ in range(ROUNDS):
            times["plain"] += plain_loop(configs["precomputed"], arguments.steps)
            for name, owner in (("precomputed", None), ("live", pool), ("live, 1M rows", large_pool)):
                trainer = timed(RdmJob(configs[name], owner))
                times[name] += diffs(trainer.starts)
                waits += trainer.waits[WARM_UP:] if owner is not None else []
    rows = [{"loop": name, "seconds": statistics.median(values)} for name, values in times.items()]
    return rows, statistics.median(waits)


def million_rows(uri: str, scratch: Path) -> str:
    """A database of a million rows: the embeddings of another, and copies with noise."""
    database = Database.open(uri)
    own = database.embeddings(np.arange(database.num_rows))
    spread = 0.5 * np.linalg.norm(own, axis=1).mean() / np.sqrt(own.shape[1])
    rng = np.random.default_rng(0)
    (scratch / "million" / "img_emb").mkdir(parents=True)
    (scratch / "million" / "metadata").mkdir()
    for number in range(MILLION // PART):
        indices = np.arange(number * PART, (number + 1) * PART)
        part = own[indices % len(own)]
        noisy = indices >= len(own)
        part[noisy] += rng.normal(0, spread, (noisy.sum(), own.shape[1]))
        np.save(scratch / "million" / "img_emb" / f"img_emb_{number:02d}.npy", part.astype(np.float16))
        keys = pa.table({"image_path": [f"{index:07d}" for index in indices], "caption": [""] * PART})
        pq.write_table(keys, scratch / "million" / "metadata" / f"metadata_{number:02d}.parquet")
    target = str(scratch / "databases" / "million")
    source = {"kind": "clip_retrieval", "uri": str(scratch / "million")}
    build_database(parse_config(BuildConfig, {"uri": target, "source": source, "gate": {"recall_at": 10}}, "bench"))
    return target


def timed(job: TrainJob) -> TimedTrainer:
    """Trains once."""
    objective, feed = job.build(torch.device("cpu"))
    trainer = TimedTrainer(job, objective, feed, torch.device("cpu"), 0, lambda folder, step: None)
    trainer.run()
    feed.close()
    return trainer


def plain_loop(config: TrainRdmConfig, steps: int) -> list[float]:
    """Step times of a loop as anybody would write it."""
    objective, feed = RdmJob(config, None).build(torch.device("cpu"))
    schedule, size = objective.schedule, config.loop.batch_size
    generator = torch.Generator().manual_seed(0)
    indices = torch.randperm(feed.num_examples, generator=generator)[: size * (WARM_UP + steps)].numpy()
    batch = feed.retrieve(indices, feed.read(indices))
    latents, neighbors = batch["latents_BCHW"], batch["neighbors_BKD"]
    torch.manual_seed(0)
    unet = build_unet(config.model)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)
    starts = []
    for step in range(WARM_UP + steps):
        starts.append(time.perf_counter())
        part = slice(step * size, (step + 1) * size)
        noise, t = torch.randn(latents[part].shape), torch.randint(0, schedule.num_timesteps, (size,))
        with torch.autocast("cpu", torch.bfloat16):
            noisy = schedule.add_noise(latents[part], noise, t)
            predicted = run_unet(unet, noisy, t, objective.context({"neighbors_BKD": neighbors[part]}))
            loss = (predicted.float() - schedule.target(latents[part], noise, t, "v")).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
    feed.close()
    return diffs(starts)


def diffs(starts: list[float]) -> list[float]:
    """Seconds of each step after the warm-up."""
    return [b - a for a, b in zip(starts[WARM_UP:-1], starts[WARM_UP + 1 :], strict=True)]


if __name__ == "__main__":
    main()
