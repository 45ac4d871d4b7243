"""Re-Imagen: neighbours encoded once a picture or in every pass; training on live BM25 or on precomputed neighbours.

    python -m tests.benchmarks.bench_reimagen [--database .demo/databases/emoji …] [--rounds 10]

The networks are those of the tiny configuration with random weights: speed does not depend on them. Live BM25 is
measured with each database that is named: one whose index is embedded, and one whose index lies in Elasticsearch.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from remembrandt.allocation import keep_freed_memory
from remembrandt.configuration import parse_config
from remembrandt.databases.database import Database
from remembrandt.databases.neighbors import PrecomputeConfig, precompute_neighbors
from remembrandt.diffusion.guidance import MixedGuidance, Passes, TextNeighborGuidance
from remembrandt.diffusion.samplers import SamplerConfig, sample
from remembrandt.distributed import connect
from remembrandt.models.reimagen.config import StageConfig
from remembrandt.models.reimagen.model import Neighbors, ReImagenUNet, Text
from remembrandt.models.reimagen.sampling import StageBatch, StageSampler, StageSettings
from remembrandt.retrieval import RetrievalPool
from remembrandt.training.feeds.cache import fill_cache
from remembrandt.training.feeds.train_set import TrainSet
from remembrandt.training.reimagen import StageJob, TrainReimagenConfig, caches
from tests.benchmarks.blocks import BLOCK, ratio_of_blocks, run_in_blocks, steps_for
from tests.benchmarks.report import table, write_report

CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "train_reimagen" / "tiny.yaml"
BATCH, STEPS, NEIGHBORS, TOKENS, ROUNDS = 8, 20, 2, 24, 3
WAYS = ("encoded once", "encoded in every pass", "plain")
SEARCHES, QUERIES = 600, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", nargs="+", default=[".demo/databases/emoji"])
    parser.add_argument("--rounds", type=int, default=6, help="of blocks of training steps")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(2)
    values = yaml.safe_load(CONFIG.read_text())
    stages = [StageConfig.model_validate(stage["model"]) for stage in values["stages"].values()]
    measured = [reuse(own) for own in stages]
    cascade = Reuse(
        {way: sum(own.seconds[way] for own in measured) for way in WAYS}, max(own.apart for own in measured)
    )
    lines = [own.row(str(config.size)) for config, own in zip(stages, measured, strict=True)]
    lines.append(cascade.row("both"))
    text = (
        f"{BATCH} pictures, K = {NEIGHBORS}, interleaved guidance (two passes a step), DDIM with {STEPS} steps, fp32, "
        f"two threads; medians of {ROUNDS} alternating rounds. *Encoded once*: what the samplers do. *Encoded in every "
        "pass*: the same, but for the neighbours. *Plain*: the network is called as it is written, for every pass with "
        "its neighbours. The largest difference of a pixel is that of either to the first."
    )
    connect()
    alive = [live(values, database, arguments.rounds) for database in arguments.database]
    sections = ["## Neighbours encoded once", table(lines), text, "## Live BM25", *alive]
    path = write_report("reimagen", "Re-Imagen", "make bench", ("torch", "deepspeed", "diffusers", "ray"), sections)
    print(path.read_text())


@dataclass(frozen=True)
class Reuse:
    """Seconds of a batch each way, and how far the pictures are apart."""

    seconds: Mapping[str, float]
    apart: float

    def row(self, stage: str) -> dict[str, str]:
        once = self.seconds[WAYS[0]]
        times = {
            way: f"{own:.2f} s" + (f", **{own / once:.2f} ×**" if own != once else "")
            for way, own in self.seconds.items()
        }
        return {"stage": stage, **times, "largest difference of a pixel": f"{self.apart:.1e}"}


def reuse(config: StageConfig) -> Reuse:
    """Draws a batch each way, in turn."""
    torch.manual_seed(0)
    sampler = StageSampler(ReImagenUNet(config).to(memory_format=torch.channels_last), {})  # as it is loaded
    edge = config.neighbor_edge
    pairs = Neighbors(
        torch.rand(BATCH, NEIGHBORS, 3, edge, edge) * 2 - 1,
        Text(torch.randn(BATCH, NEIGHBORS, TOKENS, config.text_dim), torch.ones(BATCH, NEIGHBORS, TOKENS).bool()),
        torch.ones(BATCH, NEIGHBORS).bool(),
    )
    settings = StageSettings(TextNeighborGuidance(), SamplerConfig(num_inference_steps=STEPS))
    batch = StageBatch(
        Text(torch.randn(BATCH, TOKENS, config.text_dim), torch.ones(BATCH, TOKENS).bool()),
        pairs,
        tuple(range(BATCH)),
        (settings,) * BATCH,
        None if config.low_size is None else torch.rand(BATCH, 3, config.low_size, config.low_size),
    )
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "encoded once": lambda: sampler.sample(batch),
        "encoded in every pass": lambda: sampler.sample(batch, reuse_neighbors=False),
        "plain": lambda: plain_loop(sampler, batch),
    }
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    pictures: dict[str, torch.Tensor] = {}
    for number in range(ROUNDS + 1):
        for way in WAYS:
            start = time.perf_counter()
            pictures[way] = ways[way]()
            if number:
                seconds[way].append(time.perf_counter() - start)
    apart = max(float((pictures[WAYS[0]] - drawn).abs().max()) for drawn in pictures.values())
    return Reuse({way: statistics.median(own) for way, own in seconds.items()}, apart)


@torch.inference_mode()
def plain_loop(sampler: StageSampler, batch: StageBatch) -> torch.Tensor:
    """What a user writes around the network: all passes of a step in one batch, each with its neighbours."""
    network, config, pairs = sampler.network, sampler.config, batch.neighbors
    low_res = sampler._low_res(batch, torch.device("cpu"))

    def predict(x_BCHW: torch.Tensor, t_B: torch.Tensor, rows_B: torch.Tensor, passes: Passes) -> torch.Tensor:
        rows_P, x_PCHW, t_P = rows_B[passes.place_P], x_BCHW[passes.place_P], t_B[passes.place_P]
        kept_PK = pairs.mask_BK[rows_P] & passes.keep_neighbors_P[:, None]
        own = Neighbors(pairs.pixels_BKCHW[rows_P], pairs.text.take(rows_P), kept_PK)
        words = batch.text.take(rows_P).kept(passes.keep_text_P)
        said = network(x_PCHW, t_P, words, own, None if low_res is None else low_res.take(rows_P))
        return config.schedule.noise_of(x_PCHW, said, t_P, config.prediction)

    guidance = MixedGuidance([own.guidance for own in batch.settings_B], batch.seeds_B, predict)
    samplers, shape = [own.sampler for own in batch.settings_B], (3, config.size, config.size)
    drawn = sample(guidance.predict, config.schedule, samplers, batch.seeds_B, shape, torch.device("cpu"))
    return (drawn / 2 + 0.5).clamp(0, 1)


def use(uri: str) -> None:
    """Searches for a while: an Elasticsearch that has just started compiles its code for its first ten thousand."""
    rng = np.random.default_rng(0)
    with Database.open(uri) as database:
        captions = [row.caption for row in database.rows(np.arange(database.num_rows), ["caption"])]
        for _ in range(SEARCHES):
            database.search_bm25([captions[row] for row in rng.integers(0, len(captions), QUERIES)], 14)


def live(values: dict[str, Any], uri: str, rounds: int) -> str:
    """Median steps of the first stage with live and with precomputed neighbours."""
    size = min(values["stages"])
    use(uri)
    with tempfile.TemporaryDirectory() as scratch:
        rows = {**values["train_set"], "uri": uri}
        search = {
            "num_neighbors": NEIGHBORS,
            "similarities": ["bm25"],
            "exclude": values["neighbors"]["exclude"],
            "where": rows["where"],
        }
        found = {
            "database": uri,
            "train_set": {"kind": "database", "uri": uri},
            "out": f"{scratch}/neighbors",
            "search": search,
        }
        precompute_neighbors(parse_config(PrecomputeConfig, found, "bench"))
        stage = values["stages"][size]
        loop = {**stage["loop"], "steps": steps_for(rounds), "checkpoint_every": 10**6, "sample_every": 0}
        asked = {**values["neighbors"], "database": rows, "remember": False}  # as in the first epoch
        common = {
            **values,
            "train_set": rows,
            "neighbors": asked,
            "cache": f"{scratch}/cache",
            "storage": f"{scratch}/runs",
            "output": f"{scratch}/model",
            "stages": {size: {**stage, "loop": loop}},
        }
        disk = {**asked, "mode": "precomputed", "precomputed": found["out"], "pool": {}}
        alive = parse_config(TrainReimagenConfig, common, "bench")
        stored = parse_config(TrainReimagenConfig, {**common, "name": "stored", "neighbors": disk}, "bench")
        for cache in caches(alive, [size]):
            fill_cache(cache, TrainSet.open(cache.train_set))
        with RetrievalPool.start(uri, num_cpus=0.25) as pool:
            kept, live = run_in_blocks(StageJob(stored, size, None), StageJob(alive, size, pool))
    with Database.open(uri) as database:
        bm25 = database.manifest.bm25
    backend = "elasticsearch" if bm25 is not None and "elasticsearch" in str(bm25) else "embedded"
    kept_ms, live_ms = (1000 * statistics.median(own.seconds) for own in (kept, live))
    return (
        f"Stage {size}, batch {stage['loop']['batch_size']}, BM25 {backend}: a median step takes {kept_ms:.0f} ms with "
        f"precomputed and {live_ms:.0f} ms with live neighbours, **{live_ms / kept_ms:.3f}** times as long; the steps "
        f"that share a search on average **{ratio_of_blocks(live.seconds, kept.seconds):.3f}** times (one process is "
        f"fed by each in turn, {BLOCK} steps at a time; median of {len(live.seconds) // BLOCK} neighbouring pairs)."
    )


if __name__ == "__main__":
    main()
