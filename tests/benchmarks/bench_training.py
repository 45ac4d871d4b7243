"""Training speed of the small RDM: our loop against a plain PyTorch loop, and live retrieval against precomputed.

    python -m tests.benchmarks.bench_training --database .demo/databases/emoji [--first-stage FOLDER] [--work FOLDER]

Live retrieval is measured from that database and from one of a million rows, which `--work` keeps for another run: its
embeddings, and others scattered around them. All loops train the same U-Net with the same batch and precision, each in
a process of its own, and take their steps in turns; ratios are medians over pairs of steps. The plain loop has
everything in memory, draws its noise with torch.randn, averages its weights as ours does (torch's own average), and
does nothing else; once more, it computes attention in float32 as ours does on a CPU, which shows what the rest of our
loop costs.
"""

import argparse
import statistics
import tempfile
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from remembrandt.configuration import parse_config
from remembrandt.databases.build import build_database
from remembrandt.databases.config import BuildConfig
from remembrandt.databases.database import Database
from remembrandt.databases.neighbors import PrecomputeConfig, precompute_neighbors
from remembrandt.distributed import connect
from remembrandt.models.rdm.model import build_unet, run_unet
from remembrandt.retrieval import RetrievalPool
from remembrandt.training.attention import attention_on
from remembrandt.training.config import LoopConfig
from remembrandt.training.engine import settle_precision
from remembrandt.training.feeds.cache import fill_cache
from remembrandt.training.feeds.train_set import TrainSet
from remembrandt.training.rdm import RdmJob, TrainRdmConfig, latent_cache
from tests.benchmarks.bench_sampling import random_model
from tests.benchmarks.report import table, write_report
from tests.benchmarks.turns import WARM_UP, Loop, Turn, ratio, run_in_turns, trainer_of

CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "train_rdm" / "small.yaml"
MILLION, PART = 1_000_000, 100_000
LIVE = ("live", "live, 1M rows")
STARTS = 3
"""Processes of the same loop differ by some hundredths for as long as they live."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", default=".demo/databases/emoji")
    parser.add_argument("--first-stage", help="folder; a random one if absent: speed does not depend on it")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--work", type=Path, help="keeps the database of a million rows here, for another run")
    arguments = parser.parse_args()
    connect()
    with tempfile.TemporaryDirectory() as scratch:
        starts = measure(arguments, Path(scratch))
    times = {name: [step for turns in starts for step in turns[name].seconds] for name in starts[0]}
    waits = [wait for turns in starts for name in LIVE for wait in turns[name].waits]
    kept = times["precomputed"]
    text = (
        f"Medians of {STARTS} starts of {arguments.steps} steps in turns (batch 64, {settled()}, 2 threads). "
        "Live over precomputed: "
        f"**{ratio(times['live'], kept):.3f}**, from a million rows **{ratio(times['live, 1M rows'], kept):.3f}**; "
        f"images/s of ours (precomputed) over the plain loop: **{ratio(times['plain'], kept):.3f}**, over one "
        f"with attention in float32: **{ratio(times['plain, same attention'], kept):.3f}**. Median wait for live "
        f"neighbours: {statistics.median(waits) * 1000:.2f} ms."
    )
    each = [[f"{ratio(turns[name].seconds, turns['precomputed'].seconds):.3f}" for turns in starts] for name in LIVE]
    text += " By start: " + "; ".join(f"{name} {', '.join(own)}" for name, own in zip(LIVE, each, strict=True)) + "."
    medians = {name: statistics.median(own) for name, own in times.items()}
    shown = [
        {"loop": name, "ms a step": f"{seconds * 1000:.1f}", "images/s": f"{64 / seconds:.1f}"}
        for name, seconds in medians.items()
    ]
    path = write_report(
        "training", "Training", "make bench", ("torch", "deepspeed", "diffusers", "ray"), [table(shown), text]
    )
    print(path.read_text())


def measure(arguments: argparse.Namespace, scratch: Path) -> list[dict[str, Turn]]:
    """Steps of all loops, by start."""
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
    million = million_rows(arguments.database, arguments.work or scratch)
    far = {**values["neighbors"], "database": {"uri": million}, "same": None}
    large = {**live, "name": "million", "neighbors": far}
    configs = {
        name: parse_config(TrainRdmConfig, v, "bench")
        for name, v in {"live": live, "precomputed": disk, "live, 1M rows": large}.items()
    }
    fill_cache(latent_cache(configs["live"]), TrainSet.open(configs["live"].train_set))
    with (
        RetrievalPool.start(arguments.database, num_cpus=0.25) as pool,
        RetrievalPool.start(million, num_cpus=0.25) as large_pool,
    ):
        owners = {"precomputed": None, "live": pool, "live, 1M rows": large_pool}
        ours = {name: trainer_of(RdmJob(configs[name], owner)) for name, owner in owners.items()}
        plain = partial(run_plain, configs["precomputed"], WARM_UP + arguments.steps)
        same = partial(plain, attention_on(torch.device("cpu"), settled()))
        loops: dict[str, Loop] = {"plain": partial(plain, nullcontext()), "plain, same attention": same, **ours}
        return [run_in_turns(loops) for _ in range(STARTS)]


def settled() -> str:
    """The precision of all loops: what the small configuration's `auto` means here."""
    loop = parse_config(LoopConfig, yaml.safe_load(CONFIG.read_text())["loop"], "bench")
    return settle_precision(loop.precision, 1, torch.device("cpu"))


def million_rows(uri: str, folder: Path) -> str:
    """A database of a million rows, if it is not there: the embeddings of another, and copies with noise."""
    target = str(folder / "databases" / "million")
    if (folder / "databases" / "million").exists():
        return target
    database = Database.open(uri)
    own = database.embeddings(np.arange(database.num_rows))
    spread = 0.5 * np.linalg.norm(own, axis=1).mean() / np.sqrt(own.shape[1])
    rng = np.random.default_rng(0)
    (folder / "million" / "img_emb").mkdir(parents=True)
    (folder / "million" / "metadata").mkdir()
    for number in range(MILLION // PART):
        indices = np.arange(number * PART, (number + 1) * PART)
        part = own[indices % len(own)]
        noisy = indices >= len(own)
        part[noisy] += rng.normal(0, spread, (noisy.sum(), own.shape[1]))
        np.save(folder / "million" / "img_emb" / f"img_emb_{number:02d}.npy", part.astype(np.float16))
        keys = pa.table({"image_path": [f"{index:07d}" for index in indices], "caption": [""] * PART})
        pq.write_table(keys, folder / "million" / "metadata" / f"metadata_{number:02d}.parquet")
    source = {"kind": "clip_retrieval", "uri": str(folder / "million")}
    build_database(parse_config(BuildConfig, {"uri": target, "source": source, "gate": {"recall_at": 10}}, "bench"))
    return target


def run_plain(config: TrainRdmConfig, steps: int, attention: AbstractContextManager[Any], turn: Turn) -> None:
    """The plain loop, in turns."""
    PlainLoop(config, steps).run(turn, attention)


class PlainLoop:
    """A loop as anybody would write it."""

    def __init__(self, config: TrainRdmConfig, steps: int) -> None:
        self._objective, feed = RdmJob(config, None).build(torch.device("cpu"))
        self._size, self._steps = config.loop.batch_size, steps
        self._half = settled() == "autocast"
        generator = torch.Generator().manual_seed(0)
        indices = torch.randperm(feed.num_examples, generator=generator)[: self._size * steps].numpy()
        batch = feed.retrieve(indices, feed.read(indices))
        self._latents = batch["latents_BCHW"]
        self._neighbors = {name: values for name, values in batch.items() if name.startswith("neighbors")}
        feed.close()
        torch.manual_seed(0)
        self._unet = build_unet(config.model)
        self._optimizer = torch.optim.AdamW(self._unet.parameters(), lr=1e-4, fused=True)
        self._average = AveragedModel(self._unet, multi_avg_fn=get_ema_multi_avg_fn(config.loop.ema))

    def run(self, turn: Turn, attention: AbstractContextManager[Any]) -> None:
        """All steps."""
        schedule = self._objective.schedule
        for step in range(self._steps):
            turn.take()
            part = slice(step * self._size, (step + 1) * self._size)
            noise, t = torch.randn(self._latents[part].shape), torch.randint(0, schedule.num_timesteps, (self._size,))
            with torch.autocast("cpu", torch.bfloat16, enabled=self._half), attention:
                noisy = schedule.add_noise(self._latents[part], noise, t)
                context = self._objective.context({name: own[part] for name, own in self._neighbors.items()})
                predicted = run_unet(self._unet, noisy, t, context)
                loss = (predicted.float() - schedule.target(self._latents[part], noise, t, "v")).square().mean()
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._unet.parameters(), 1.0)
            self._optimizer.step()
            self._average.update_parameters(self._unet)


if __name__ == "__main__":
    main()
