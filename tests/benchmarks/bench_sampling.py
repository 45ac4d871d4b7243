"""Sampling speed of RDM: our sampler against a diffusers loop, and a batch of many tenants against one tenant's.

    python -m tests.benchmarks.bench_sampling [--model rdm-small]

Without --model a U-Net of the small configuration with random weights is used: speed does not depend on them.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch
import yaml
from diffusers import DDIMScheduler

from remembrandt.allocation import OWN_ARENAS, keep_freed_memory
from remembrandt.diffusion.guidance import Context
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.encoders.hardware import cpu_multiplies_bf16
from remembrandt.models.first_stage.config import FirstStageConfig
from remembrandt.models.first_stage.model import FirstStage, build_autoencoder, with_scale
from remembrandt.models.rdm.config import RdmConfig
from remembrandt.models.rdm.model import build_unet
from remembrandt.models.rdm.sampling import RdmSampler, SampleBatch, SampleSettings, save_rdm
from tests.benchmarks.report import table, write_report
from tests.benchmarks.turns import ratio

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
BATCH, STEPS, SCALE, ROUNDS = 16, 25, 2.0, 5
_ways: dict[str, Callable[[], object]] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or str(random_model(Path(scratch)))
        rows = [row for dtype in precisions() for row in measure(folder, dtype)]
    text = (
        f"{BATCH} pictures of 64 pixels, DDIM with η = 1, {STEPS} steps, guidance {SCALE}, two threads; medians of "
        f"{ROUNDS} alternating rounds, ratios pair by pair. Ours run in a process that is set up as a sampler's "
        "replica is (it keeps freed memory), the diffusers loop in a plain one. "
        "The mixed batch has tenants with 1 to 4 neighbours, two guidance scales, and "
        "the same steps; every tenant's pictures are what they would be alone."
    )
    path = write_report("sampling", "Sampling", "make bench", ("torch", "diffusers"), [table(rows), text])
    print(path.read_text())


def precisions() -> list[torch.dtype]:
    """Those that this CPU multiplies in: where it has no bf16 products, nobody samples in bf16."""
    return [torch.float32, torch.bfloat16] if cpu_multiplies_bf16() else [torch.float32]


def random_model(folder: Path) -> Path:
    """The small model with random weights."""
    torch.manual_seed(0)
    config = RdmConfig.model_validate(yaml.safe_load((CONFIGS / "train_rdm" / "small.yaml").read_text())["model"])
    stage = yaml.safe_load((CONFIGS / "train_first_stage" / "small.yaml").read_text())["model"]
    first_stage = FirstStage(with_scale(build_autoencoder(FirstStageConfig.model_validate(stage)), 1.0))
    save_rdm(folder, build_unet(config), first_stage, config, {})
    return folder


def measure(folder: str, dtype: torch.dtype) -> list[dict[str, str]]:
    """Pictures a second of the three ways, in one precision; a process for the peer and one for ours, in turns."""
    base = {"ours, one tenant": "diffusers loop", "ours, mixed tenants": "ours, one tenant"}
    seconds: dict[str, list[float]] = {name: [] for name in ("diffusers loop", *base)}
    with started(folder, dtype, {}) as peer, started(folder, dtype, OWN_ARENAS) as ours:
        for number in range(ROUNDS + 1):
            for name in seconds:
                took = (peer if name not in base else ours).submit(draw, name).result()
                if number:
                    seconds[name].append(took)
    rates = {name: BATCH / statistics.median(times) for name, times in seconds.items()}
    return [
        {
            "precision": str(dtype).removeprefix("torch."),
            "way": name,
            "pictures/s": f"{rate:.2f}",
            "ratio": f"{ratio(seconds[base[name]], seconds[name]):.2f} × {base[name]}" if name in base else "",
        }
        for name, rate in rates.items()
    ]


def started(folder: str, dtype: torch.dtype, environment: dict[str, str]) -> ProcessPoolExecutor:
    """A process with a loaded sampler: one with our environment as a sampler's replica has it, or a plain one."""
    with patch.dict(os.environ, environment):
        pool = ProcessPoolExecutor(1, get_context("spawn"), load, (folder, dtype, bool(environment)))
        pool.submit(os.getpid).result()
    return pool


def load(folder: str, dtype: torch.dtype, as_replica: bool) -> None:
    """What each way draws with, in its process."""
    torch.set_num_threads(2)
    if as_replica:
        keep_freed_memory()
    sampler = RdmSampler.load(folder, dtype=dtype)
    tokens = torch.randn(BATCH, 4, sampler.config.context_dim, generator=torch.Generator().manual_seed(1))
    settings = SampleSettings(SCALE, SamplerConfig(num_inference_steps=STEPS, eta=1.0))
    one = SampleBatch.uniform(Context(tokens), range(BATCH), settings)
    mask = torch.arange(4) <= (torch.arange(BATCH) % 4)[:, None]
    other = SampleSettings(4.0, settings.sampler)
    many = SampleBatch(Context(tokens, mask), tuple(range(BATCH)), (settings, other) * (BATCH // 2))
    _ways.update(
        {
            "diffusers loop": lambda: diffusers_loop(sampler, tokens.to(dtype)),
            "ours, one tenant": lambda: sampler.sample(one),
            "ours, mixed tenants": lambda: sampler.sample(many),
        }
    )


def draw(way: str) -> float:
    """Seconds of a batch."""
    start = time.perf_counter()
    _ways[way]()
    return time.perf_counter() - start


@torch.inference_mode()
def diffusers_loop(sampler: RdmSampler, tokens: torch.Tensor) -> torch.Tensor:
    """What a user of diffusers writes: scheduler, doubled batch, decode."""
    config = sampler.schedule.diffusers_config(sampler.config.prediction)
    scheduler = DDIMScheduler(**config, set_alpha_to_one=False, clip_sample=False)
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(0)
    edge, channels = sampler.config.latent_size, sampler.config.latent_channels
    latents = torch.randn(BATCH, channels, edge, edge, generator=generator, dtype=tokens.dtype)
    both = torch.cat([torch.zeros_like(tokens), tokens])
    for t in scheduler.timesteps:
        null, own = sampler.unet(torch.cat([latents, latents]), t, both, return_dict=False)[0].chunk(2)
        noise = null + SCALE * (own - null)
        latents = scheduler.step(noise, t, latents, eta=1.0, generator=generator).prev_sample
    return sampler.first_stage.decode(latents)


if __name__ == "__main__":
    main()
