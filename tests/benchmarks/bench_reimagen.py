"""Re-Imagen: neighbours encoded once a picture against in every pass, and training on live BM25 against precomputed.

    python -m tests.benchmarks.bench_reimagen [--database .demo/databases/emoji …] [--steps 60]

The networks are those of the tiny configuration with random weights: speed does not depend on them. Live BM25 is
measured with each database that is named: one whose index is embedded, and one whose index lies in Elasticsearch.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from remembrandt.configuration import parse_config
from remembrandt.databases.database import Database
from remembrandt.databases.neighbors import PrecomputeConfig, precompute_neighbors
from remembrandt.diffusion.guidance import TextNeighborGuidance
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.distributed import connect
from remembrandt.models.reimagen.config import StageConfig
from remembrandt.models.reimagen.model import Neighbors, ReImagenUNet, Text
from remembrandt.models.reimagen.sampling import StageBatch, StageSampler, StageSettings
from remembrandt.retrieval import RetrievalPool
from remembrandt.training.feeds.cache import fill_cache
from remembrandt.training.feeds.train_set import TrainSet
from remembrandt.training.reimagen import StageJob, TrainReimagenConfig, caches
from tests.benchmarks.report import table, write_report
from tests.benchmarks.turns import WARM_UP, ratio, run_in_turns, trainer_of

CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "train_reimagen" / "tiny.yaml"
BATCH, STEPS, NEIGHBORS, TOKENS, ROUNDS = 8, 20, 2, 24, 3
SEARCHES, QUERIES = 600, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", nargs="+", default=[".demo/databases/emoji"])
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    values = yaml.safe_load(CONFIG.read_text())
    stages = [StageConfig.model_validate(stage["model"]) for stage in values["stages"].values()]
    # As P2 has it, neighbours are of a stage's own size; ours gives them to the upper stage at half of it.
    stages += [own.model_copy(update={"neighbor_size": None}) for own in stages if own.neighbor_edge < own.size]
    measured = [reuse(own) for own in stages]
    shipped = measured[: len(values["stages"])]
    cascade = Reuse(sum(o.once for o in shipped), sum(o.anew for o in shipped), max(o.apart for o in shipped))
    lines = [own.row(str(config.size), str(config.neighbor_edge)) for config, own in zip(stages, measured, strict=True)]
    lines.append(cascade.row("both, as shipped", ""))
    text = (
        f"{BATCH} pictures, K = {NEIGHBORS}, interleaved guidance (two passes a step), DDIM with {STEPS} steps, fp32, "
        f"two threads; medians of {ROUNDS} alternating rounds."
    )
    connect()
    alive = [live(values, database, arguments.steps) for database in arguments.database]
    sections = ["## Neighbours encoded once", table(lines), text, "## Live BM25", *alive]
    path = write_report("reimagen", "Re-Imagen", "make bench", ("torch", "deepspeed", "diffusers", "ray"), sections)
    print(path.read_text())


@dataclass(frozen=True)
class Reuse:
    """Seconds of a batch either way, and how far the pictures are apart."""

    once: float
    anew: float
    apart: float

    def row(self, stage: str, edge: str) -> dict[str, str]:
        return {
            "stage": stage,
            "neighbours": edge,
            "once": f"{self.once:.2f} s",
            "in every pass": f"{self.anew:.2f} s",
            "ratio": f"**{self.anew / self.once:.2f}**",
            "largest difference of a pixel": f"{self.apart:.1e}",
        }


def reuse(config: StageConfig) -> Reuse:
    """Draws a batch either way, in turn."""
    torch.manual_seed(0)
    sampler = StageSampler(ReImagenUNet(config), {})
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
    seconds: dict[bool, list[float]] = {True: [], False: []}
    pictures: dict[bool, torch.Tensor] = {}
    for number in range(ROUNDS + 1):
        for once in (True, False):
            start = time.perf_counter()
            pictures[once] = sampler.sample(batch, reuse_neighbors=once)
            if number:
                seconds[once].append(time.perf_counter() - start)
    once, anew = (statistics.median(seconds[way]) for way in (True, False))
    return Reuse(once, anew, float((pictures[True] - pictures[False]).abs().max()))


def use(uri: str) -> None:
    """Searches for a while: an Elasticsearch that has just started compiles its code for its first ten thousand."""
    rng = np.random.default_rng(0)
    with Database.open(uri) as database:
        captions = [row.caption for row in database.rows(np.arange(database.num_rows), ["caption"])]
        for _ in range(SEARCHES):
            database.search_bm25([captions[row] for row in rng.integers(0, len(captions), QUERIES)], 14)


def live(values: dict[str, Any], uri: str, steps: int) -> str:
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
        loop = {**stage["loop"], "steps": WARM_UP + steps, "checkpoint_every": 10**6, "sample_every": 0}
        asked = {**values["neighbors"], "database": rows}
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
            jobs = {"precomputed": StageJob(stored, size, None), "live": StageJob(alive, size, pool)}
            turns = run_in_turns({name: trainer_of(job) for name, job in jobs.items()})
        times = {name: turn.seconds for name, turn in turns.items()}
    with Database.open(uri) as database:
        bm25 = database.manifest.bm25
    backend = "elasticsearch" if bm25 is not None and "elasticsearch" in str(bm25) else "embedded"
    median = {name: statistics.median(own) for name, own in times.items()}
    batch = stage["loop"]["batch_size"]
    return (
        f"Stage {size}, batch {batch}, BM25 {backend}: a step takes {median['precomputed'] * 1000:.0f} ms with "
        f"precomputed and {median['live'] * 1000:.0f} ms with live neighbours, "
        f"**{ratio(times['live'], times['precomputed']):.3f}** times as long (medians of {steps} steps in turns)."
    )


if __name__ == "__main__":
    main()
