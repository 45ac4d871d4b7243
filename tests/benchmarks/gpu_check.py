"""What a CUDA GPU makes of RDM 400M: training at ZeRO 0 and 2, sampling with and without torch.compile, FAISS search.

    python -m tests.benchmarks.gpu_check [--config jobs/configs/train_rdm/rdm-400m.yaml] [--batch 32] [--device cuda]

Runs unattended in less than eight minutes; weights, latents and neighbours are random, because speed does not depend on
them. A part that cannot run is named, with the reason, and the others go on. `--device cpu` runs every part that a CPU
can, to try the script itself.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml

from remembrandt.diffusion.guidance import Context
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.models.first_stage.config import FirstStageConfig
from remembrandt.models.first_stage.model import FirstStage, build_autoencoder, with_scale
from remembrandt.models.rdm.config import RdmConfig
from remembrandt.models.rdm.objective import RdmObjective
from remembrandt.models.rdm.sampling import RdmSampler, SampleBatch, SampleSettings
from remembrandt.training.config import LoopConfig
from remembrandt.training.engine import Engine
from remembrandt.training.throughput import peak_flops, training_flops
from tests.benchmarks.report import table, write_report
from tests.support.processes import free_ports

STEPS, WARM_UP = 20, 5
CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "train_rdm" / "rdm-400m.yaml"
SAMPLING_STEPS, SCALE = 25, 2.0
FAISS_ROWS, FAISS_QUERIES = 1_000_000, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA GPU here: nothing to check")
        return
    device = torch.device(arguments.device)
    config = RdmConfig.model_validate(yaml.safe_load(arguments.config.read_text())["model"])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=0, world_size=1)
    parts: dict[str, Callable[[], list[dict[str, str]]]] = {
        "Training": lambda: [training(config, device, arguments.batch, stage) for stage in (0, 2)],
        "Sampling": lambda: [sampling(config, device, arguments.batch, compiled) for compiled in (False, True)],
        "FAISS": lambda: [faiss_search()],
    }
    sections = [f"Device: {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}."]
    for name, work in parts.items():
        start = time.monotonic()
        try:
            body = table(work())
        except (ImportError, RuntimeError, AttributeError) as error:
            body = f"Not run: {' '.join(str(error).split())[:300]}"
        sections.append(f"## {name}\n\n{body}\n\n{time.monotonic() - start:.0f} s.")
        print(sections[-1], flush=True)
    dist.destroy_process_group()
    if device.type == "cuda":
        print(write_report("gpu", "GPU check", "make gpu-check", ("torch", "deepspeed", "diffusers"), sections))


def training(config: RdmConfig, device: torch.device, batch: int, zero_stage: int) -> dict[str, str]:
    """Median step of bf16 training, and the most memory that it took."""
    loop = LoopConfig(batch_size=batch, zero_stage=zero_stage, precision="bf16", gpu=device.type == "cuda")
    objective = RdmObjective(config, first_stage(config, device), {})
    torch.manual_seed(0)
    engine = Engine(objective.configure_model(), loop, device, zero_stage)
    example = {
        "latents_BCHW": torch.randn(batch, config.latent_channels, config.latent_size, config.latent_size),
        "neighbors_BKD": torch.randn(batch, 4, config.context_dim),
    }
    prepared = objective.prepare(example, np.arange(batch))
    moved = {name: value.to(device) for name, value in prepared.items()}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(WARM_UP + STEPS):
        start = time.perf_counter()
        engine.backward(objective.loss(engine.network, moved).per_example_B.mean())
        engine.step(1e-4)
        _wait(device)
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[WARM_UP:])
    peak = peak_flops(device)
    flops = training_flops(lambda: objective.loss(engine.module, moved))
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {
        "ZeRO": str(zero_stage),
        "batch": str(batch),
        "images/s": f"{batch / seconds:.1f}",
        "peak memory": f"{memory / 2**30:.1f} GiB" if memory else "–",
        "FLOP utilisation": f"{flops / seconds / peak:.2f}" if peak else "–",
    }


def sampling(config: RdmConfig, device: torch.device, batch: int, compiled: bool) -> dict[str, str]:
    """Pictures a second in bf16 with guidance; compilation is counted apart."""
    objective = RdmObjective(config, first_stage(config, device), {})
    unet = objective.configure_model().to(device, torch.bfloat16).eval()
    sampler = RdmSampler(unet, objective.first_stage, config, {})
    if compiled:
        sampler.compile()
    settings = SampleSettings(SCALE, SamplerConfig(num_inference_steps=SAMPLING_STEPS, eta=1.0))
    request = SampleBatch.uniform(Context(torch.randn(batch, 4, config.context_dim)), range(batch), settings)
    start = time.perf_counter()
    sampler.sample(request)
    first = time.perf_counter() - start
    times = []
    for _ in range(3):
        start = time.perf_counter()
        sampler.sample(request)
        _wait(device)
        times.append(time.perf_counter() - start)
    return {
        "torch.compile": "yes" if compiled else "no",
        "batch": str(batch),
        "steps": str(SAMPLING_STEPS),
        "pictures/s": f"{batch / statistics.median(times):.2f}",
        "first call": f"{first:.1f} s",
    }


def first_stage(config: RdmConfig, device: torch.device) -> FirstStage:
    """VQ f4 of P1 with random weights; latents of another shape get a KL of their own."""
    channels = (128, 256, 512) if config.latent_channels == 3 else (32, 64, 128)
    kind: Any = "vq" if config.latent_channels == 3 else "kl"
    shape = FirstStageConfig(kind=kind, size=256, channels=channels, latent_channels=config.latent_channels)
    return FirstStage(with_scale(build_autoencoder(shape), 1.0)).to(device)


def faiss_search() -> dict[str, str]:
    """Exact search of a million vectors on the GPU."""
    import faiss

    if faiss.get_num_gpus() == 0:
        raise ImportError("FAISS sees no GPU: install faiss-gpu (extra `gpu`)")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((FAISS_ROWS, 512), dtype=np.float32)
    index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(512))
    index.add(vectors)
    queries = rng.standard_normal((FAISS_QUERIES, 512), dtype=np.float32)
    index.search(queries, 20)
    start = time.perf_counter()
    index.search(queries, 20)
    return {"rows": f"{FAISS_ROWS:,}", "queries/s": f"{FAISS_QUERIES / (time.perf_counter() - start):,.0f}"}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
