"""Training speed of the small RDM: our loop against a plain PyTorch loop, and live retrieval against precomputed.

    python -m tests.benchmarks.bench_training --database .demo/databases/emoji [--first-stage FOLDER] [--work FOLDER]

Live retrieval is measured from that database and from one of a million rows, which `--work` keeps for another run: its
embeddings, and others scattered around them. One process trains with precomputed and live neighbours by turns, eight
steps each. Our loop and the plain one train the same U-Net with the same batch and precision, each in a process of its
own, and take their steps in turns. Ratios are medians over pairs. The plain loop has everything in memory,
draws its noise with torch.randn, averages its weights as ours does (torch's own average), and does nothing else; once
more, it computes attention in float32 as ours does on a CPU, which shows what the rest of our loop costs.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
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
from tests.benchmarks.blocks import BLOCK, ratio_of_blocks, run_in_blocks, steps_for
from tests.benchmarks.report import table, write_report
from tests.benchmarks.turns import WARM_UP, Loop, Taken, Turn, ratio, run_in_turns, trainer_of

CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "train_rdm" / "small.yaml"
MILLION, PART, BATCH = 1_000_000, 100_000, 64
OURS = "ours"
KEPT = "precomputed"
LIVE, FAR = "live, first epoch", "live, first epoch, 1M rows"
STARTS = 3
"""Processes of the same loop differ by some hundredths for as long as they live."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", default=".demo/databases/emoji")
    parser.add_argument("--first-stage", help="folder; a random one if absent: speed does not depend on it")
    parser.add_argument("--steps", type=int, default=20, help="of each loop, in each of its starts")
    parser.add_argument("--rounds", type=int, default=6, help="of blocks of steps, in each start")
    parser.add_argument("--work", type=Path, help="keeps the database of a million rows here, for another run")
    arguments = parser.parse_args()
    connect()
    with tempfile.TemporaryDirectory() as scratch:
        jobs, pools = prepare(arguments, Path(scratch))
        try:
            timed = with_steps(jobs, steps_for(arguments.rounds))
            blocks = {name: [run_in_blocks(timed[KEPT], timed[name]) for _ in range(STARTS)] for name in (LIVE, FAR)}
            starts = [run_in_turns(loops(jobs[KEPT], WARM_UP + arguments.steps)) for _ in range(STARTS)]
        finally:
            for pool in pools:
                pool.close()
    path = write_report(
        "training",
        "Training",
        "make bench",
        ("torch", "deepspeed", "diffusers", "ray"),
        [*live(blocks), *plain(starts)],
    )
    print(path.read_text())


def live(blocks: Mapping[str, Sequence[tuple[Taken, Taken]]]) -> list[str]:
    """What is said of live neighbours, from several starts of each kind: steps with precomputed ones, and with them."""
    rows = []
    for name, starts in blocks.items():
        kept, own = ([step for start in starts for step in start[which].seconds] for which in (0, 1))
        each = [ratio_of_blocks(start[1].seconds, start[0].seconds) for start in starts]
        rows.append(
            {
                "neighbours": name,
                "ms a step": f"{statistics.median(own) * 1000:.1f}",
                "precomputed": f"{statistics.median(kept) * 1000:.1f}",
                "× precomputed": f"**{ratio_of_blocks(own, kept):.3f}**",
                "a median step": f"{statistics.median(own) / statistics.median(kept):.3f}",
                "by start": ", ".join(f"{value:.3f}" for value in each),
            }
        )
    waits = [wait for starts in blocks.values() for _, own in starts for wait in own.waits]
    count = len(blocks[LIVE][0][0].seconds)
    text = (
        f"One process is fed by either in turn, {BLOCK} steps at a time; {len(blocks[LIVE])} starts with {count} steps "
        f"of each (batch {BATCH}, {settled()}, 2 threads). Neighbours of {BLOCK} steps are found at once, so their "
        f"means are compared; × precomputed is the median over neighbouring blocks. Mean wait for live neighbours: "
        f"{statistics.mean(waits) * 1000:.2f} ms. In later epochs nothing is asked for."
    )
    return ["## Live neighbours", table(rows), text]


def plain(starts: Sequence[Mapping[str, Taken]]) -> list[str]:
    """What is said of our loop and the plain one, from several starts."""
    times = {name: [step for start in starts for step in start[name].seconds] for name in starts[0]}
    medians = {name: statistics.median(own) for name, own in times.items()}
    rows = [
        {
            "loop": name,
            "ms a step": f"{seconds * 1000:.1f}",
            "images/s": f"{BATCH / seconds:.1f}",
            "images/s of ours over it": "" if name == OURS else f"**{ratio(times[name], times[OURS]):.3f}**",
        }
        for name, seconds in medians.items()
    ]
    count = len(starts[0][OURS].seconds)
    text = f"Medians of {len(starts)} starts of {count} steps in turns, all with precomputed neighbours."
    return ["## Beside a plain loop", table(rows), text]


def loops(job: RdmJob, steps: int) -> dict[str, Loop]:
    """Ours, and plain ones."""
    other = partial(run_plain, job.config, steps)
    same = attention_on(torch.device("cpu"), settled())
    ours = trainer_of(with_steps({OURS: job}, steps)[OURS])
    return {"plain": partial(other, nullcontext()), "plain, same attention": partial(other, same), OURS: ours}


def with_steps(jobs: Mapping[str, RdmJob], steps: int) -> dict[str, RdmJob]:
    """The same jobs with another number of steps."""
    settings = {name: job.config.loop.model_copy(update={"steps": steps}) for name, job in jobs.items()}
    return {
        name: replace(job, config=job.config.model_copy(update={"loop": settings[name]})) for name, job in jobs.items()
    }


def prepare(arguments: argparse.Namespace, scratch: Path) -> tuple[dict[str, RdmJob], list[RetrievalPool]]:
    """Jobs that differ in where their neighbours come from, and the pools that answer."""
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
        "loop": {**values["loop"], "log_every": 10, "checkpoint_every": 10**6, "sample_every": 0},
    }
    near = {**values, "name": "live", "neighbors": {**asked, "database": database}}
    disk = {
        **near,
        "name": "precomputed",
        "neighbors": {**near["neighbors"], "mode": "precomputed", "precomputed": found["out"], "pool": {}},
    }
    million = million_rows(arguments.database, arguments.work or scratch)
    far = {**near, "name": "million", "neighbors": {**asked, "database": {"uri": million}, "same": None}}
    # In its first epoch nothing is remembered yet.
    first = {
        name: {**own, "neighbors": {**own["neighbors"], "remember": False}}
        for name, own in {LIVE: near, FAR: far}.items()
    }
    configs = {name: parse_config(TrainRdmConfig, own, "bench") for name, own in {KEPT: disk, **first}.items()}
    fill_cache(latent_cache(configs[LIVE]), TrainSet.open(configs[LIVE].train_set))
    here, there = (RetrievalPool.start(uri, num_cpus=0.25) for uri in (arguments.database, million))
    pools = {LIVE: here, FAR: there}
    return {name: RdmJob(config, pools.get(name)) for name, config in configs.items()}, [here, there]


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
        batch = feed.join(feed.read(indices), feed.find(indices))
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
