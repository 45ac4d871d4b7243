"""What a CUDA GPU makes of RDM 400M and of the base stage of Re-Imagen-small: training, sampling, FAISS search.

    python -m tests.benchmarks.gpu_check [--rdm FILE] [--reimagen FILE] [--batch 64] [--minutes 7.5] [--device cuda]

Runs unattended in less than eight minutes; weights, pictures and neighbours are random, because speed does not depend
on them. A part that cannot go on, or for which no time is left, is named with the reason beside what it had measured,
and the others go on. `--device cpu` runs every part that a CPU can, to try the script itself.
"""

import argparse
import gc
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import yaml
from torch import nn

from remembrandt.diffusion.guidance import Context, TextNeighborGuidance
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.models.first_stage.config import FirstStageConfig
from remembrandt.models.first_stage.model import FirstStage, build_autoencoder, with_scale
from remembrandt.models.objective import Objective, Tensors
from remembrandt.models.rdm.config import RdmConfig
from remembrandt.models.rdm.objective import RdmObjective
from remembrandt.models.rdm.sampling import RdmSampler, SampleBatch, SampleSettings
from remembrandt.models.reimagen.config import StageConfig
from remembrandt.models.reimagen.model import Neighbors, Text
from remembrandt.models.reimagen.objective import StageLossConfig, StageObjective
from remembrandt.models.reimagen.sampling import StageBatch, StageSampler, StageSettings
from remembrandt.training.config import LoopConfig, OptimizerConfig
from remembrandt.training.engine import Engine
from remembrandt.training.throughput import peak_flops, training_flops
from tests.benchmarks.report import table, write_report
from tests.support.processes import free_ports

Precision = Literal["bf16", "autocast"]
STEPS, WARM_UP = 20, 5
CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
SAMPLING_STEPS, SCALE, ROUNDS = 25, 2.0, 3
TOKENS = 128
LARGEST_BATCH = 512
FAISS_ROWS, FAISS_QUERIES = 1_000_000, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rdm", type=Path, default=CONFIGS / "train_rdm" / "rdm-400m.yaml")
    parser.add_argument("--reimagen", type=Path, default=CONFIGS / "train_reimagen" / "re-imagen-small.yaml")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=7.5, help="for all parts together (default 7.5)")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA GPU here: nothing to check")
        return
    device = torch.device(arguments.device)
    rdm = RdmConfig.model_validate(yaml.safe_load(arguments.rdm.read_text())["model"])
    stages = yaml.safe_load(arguments.reimagen.read_text())["stages"]
    base = StageConfig.model_validate(stages[min(stages)]["model"])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    torch.backends.cudnn.benchmark = True
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=0, world_size=1)
    batch, one, other = arguments.batch, arguments.rdm.stem, f"{arguments.reimagen.stem}, {base.size} pixels"
    parts: dict[str, Callable[[], Iterator[dict[str, str]]]] = {
        f"Training {one}": lambda: rdm_training(rdm, device, batch),
        f"Sampling {one}": lambda: (rdm_sampling(rdm, device, batch, compiled) for compiled in (False, True)),
        f"Training {other}": lambda: base_training(base, device),
        f"Sampling {other}": lambda: base_sampling(base, device),
        "FAISS": faiss_search,
    }
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    sections = [f"Device: {card}. Everything computes in bf16."]
    for name, work in parts.items():
        start = time.monotonic()
        sections.append(f"## {name}\n\n{run_part(work, end)}\n\n{time.monotonic() - start:.0f} s.")
        _free(device)
        print(sections[-1], flush=True)
    dist.destroy_process_group()
    if device.type == "cuda":
        print(write_report("gpu", "GPU check", "make gpu-check", ("torch", "deepspeed", "diffusers"), sections))


def run_part(work: Callable[[], Iterator[dict[str, str]]], end: float) -> str:
    """The table of what it measured until `end` (time.monotonic), and why it stopped, where it could not go on."""
    rows: list[dict[str, str]] = []
    why = ""
    try:
        with _until(end):
            rows.extend(work())
    except (ImportError, RuntimeError, AttributeError, TimeoutError) as error:
        what = "Not run" if not rows else "Stopped here"
        why = f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return "\n\n".join(filter(None, (table(rows) if rows else "", why)))


def plain_training(config: RdmConfig, device: torch.device, batch: int) -> dict[str, str]:
    """What anybody would write: autocast, fused AdamW, clipped gradients."""
    objective = RdmObjective(config, first_stage(config, device), {})
    with device:
        unet = objective.configure_model()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)

    def step(moved: Tensors) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = objective.loss(unet, moved).per_example_B.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()

    return {"loop": "plain PyTorch, autocast", **measure(objective, unet, step, latents(config, batch), device)}


def rdm_training(config: RdmConfig, device: torch.device, batch: int) -> Iterator[dict[str, str]]:
    """A plain step, and our loop's."""
    yield plain_training(config, device, batch)
    ways: tuple[tuple[Precision, int], ...] = (("autocast", 0), ("bf16", 1), ("bf16", 2))
    for precision, zero_stage in ways:
        loop = LoopConfig(batch_size=batch, zero_stage=zero_stage, precision=precision, gpu=device.type == "cuda")
        step = TrainingStep(RdmObjective(config, first_stage(config, device), {}), loop, device)
        yield {"loop": f"{precision}, ZeRO {zero_stage}", **step.measure(latents(config, batch))}


def latents(config: RdmConfig, batch: int) -> Tensors:
    """Random latents with four neighbours each."""
    return {
        "latents_BCHW": torch.randn(batch, config.latent_channels, config.latent_size, config.latent_size),
        "neighbors_BKD": torch.randn(batch, 4, config.context_dim),
    }


def base_training(config: StageConfig, device: torch.device) -> Iterator[dict[str, str]]:
    """Batches of 8, 16, 32, … until the memory is full or nothing is gained; Adafactor, as P2 trains it."""
    loop = LoopConfig(
        batch_size=8, precision="bf16", gpu=device.type == "cuda", optimizer=OptimizerConfig(kind="adafactor")
    )
    step = TrainingStep(StageObjective(config, StageLossConfig(), {}), loop, device)
    best, batch = 0.0, loop.batch_size
    while batch <= (LARGEST_BATCH if loop.gpu else loop.batch_size):
        try:
            figures = step.measure(pairs(config, batch))
        except torch.OutOfMemoryError:
            return
        yield figures
        rate = float(figures["images/s"])
        if rate < 1.02 * best:
            return
        best, batch = rate, 2 * batch


class TrainingStep:
    """A network under training on the device, and what a step of it costs."""

    def __init__(self, objective: Objective, loop: LoopConfig, device: torch.device) -> None:
        torch.manual_seed(0)
        with device:
            module = objective.configure_model()
        self.objective, self.device = objective, device
        self.engine = Engine(module, loop, device, loop.zero_stage)

    def measure(self, example: Tensors) -> dict[str, str]:
        """What a step with this batch costs."""
        return measure(self.objective, self.engine.module, self._step, example, self.device)

    def _step(self, moved: Tensors) -> None:
        with self.engine.arithmetic():
            loss = self.objective.loss(self.engine.network, moved).per_example_B.mean()
        self.engine.backward(loss)
        self.engine.step(1e-4)


def measure(
    objective: Objective, network: nn.Module, step: Callable[[Tensors], None], example: Tensors, device: torch.device
) -> dict[str, str]:
    """Median step, the most memory that it took, and its share of the peak."""
    batch = len(next(iter(example.values())))
    moved = {name: value.to(device) for name, value in objective.prepare(example, np.arange(batch)).items()}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = _median(lambda: step(moved), STEPS, WARM_UP, device)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    peak = peak_flops(device)
    flops = training_flops(lambda: objective.loss(network, moved))
    return {
        "batch": str(batch),
        "images/s": f"{batch / seconds:.1f}",
        "peak memory": f"{memory / 2**30:.1f} GiB" if memory else "–",
        "FLOP utilisation": f"{flops / seconds / peak:.2f}" if peak else "–",
    }


def rdm_sampling(config: RdmConfig, device: torch.device, batch: int, compiled: bool) -> dict[str, str]:
    """Pictures a second with guidance; compilation is counted apart."""
    objective = RdmObjective(config, first_stage(config, device), {})
    with device:
        unet = objective.configure_model().to(torch.bfloat16).eval()
    sampler = RdmSampler(unet, objective.first_stage, config, {})
    if compiled:
        sampler.compile()
    settings = SampleSettings(SCALE, SamplerConfig(num_inference_steps=SAMPLING_STEPS, eta=1.0))
    request = SampleBatch.uniform(Context(torch.randn(batch, 4, config.context_dim)), range(batch), settings)
    first = _median(lambda: sampler.sample(request), 1, 0, device)
    seconds = _median(lambda: sampler.sample(request), ROUNDS, 0, device)
    return {
        "torch.compile": "yes" if compiled else "no",
        "batch": str(batch),
        "steps": str(SAMPLING_STEPS),
        "pictures/s": f"{batch / seconds:.2f}",
        "first call": f"{first:.1f} s",
    }


def base_sampling(config: StageConfig, device: torch.device, batch: int = 16) -> Iterator[dict[str, str]]:
    """Seconds a picture, two passes a step, neighbours encoded once."""
    objective = StageObjective(config, StageLossConfig(), {})
    with device:
        network: Any = objective.configure_model().to(torch.bfloat16)
    given = pairs(config, batch)
    neighbors = Neighbors(
        given["neighbor_pixels_BKHWC"].movedim(-1, 2).float() / 127.5 - 1,
        Text(given["neighbor_tokens_BKLD"], given["neighbor_text_mask_BKL"]),
        given["neighbors_mask_BK"],
    )
    settings = StageSettings(TextNeighborGuidance(), SamplerConfig(num_inference_steps=SAMPLING_STEPS))
    text = Text(given["tokens_BLD"], given["text_mask_BL"])
    request = StageBatch(text, neighbors, tuple(range(batch)), (settings,) * batch)
    sampler = StageSampler(network, {})
    seconds = _median(lambda: sampler.sample(request), ROUNDS, 1, device)
    yield {"batch": str(batch), "steps": str(SAMPLING_STEPS), "seconds a picture": f"{seconds / batch:.3f}"}


def pairs(config: StageConfig, batch: int) -> Tensors:
    """Random pictures and token states, each with K neighbours."""
    count, edge = config.num_neighbors, config.neighbor_edge
    return {
        "pixels_BHWC": torch.randint(0, 256, (batch, config.size, config.size, 3), dtype=torch.uint8),
        "tokens_BLD": torch.randn(batch, TOKENS, config.text_dim),
        "text_mask_BL": torch.ones(batch, TOKENS, dtype=torch.bool),
        "neighbor_pixels_BKHWC": torch.randint(0, 256, (batch, count, edge, edge, 3), dtype=torch.uint8),
        "neighbor_tokens_BKLD": torch.randn(batch, count, TOKENS, config.text_dim),
        "neighbor_text_mask_BKL": torch.ones(batch, count, TOKENS, dtype=torch.bool),
        "neighbors_mask_BK": torch.ones(batch, count, dtype=torch.bool),
    }


def first_stage(config: RdmConfig, device: torch.device) -> FirstStage:
    """VQ f4 of P1 with random weights; latents of another shape get a KL of their own."""
    channels = (128, 256, 512) if config.latent_channels == 3 else (32, 64, 128)
    kind: Any = "vq" if config.latent_channels == 3 else "kl"
    shape = FirstStageConfig(kind=kind, size=256, channels=channels, latent_channels=config.latent_channels)
    return FirstStage(with_scale(build_autoencoder(shape), 1.0)).to(device)


def faiss_search() -> Iterator[dict[str, str]]:
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
    yield {"rows": f"{FAISS_ROWS:,}", "queries/s": f"{FAISS_QUERIES / (time.perf_counter() - start):,.0f}"}


@contextmanager
def _until(end: float) -> Iterator[None]:
    """Ends what runs within when the time is over, said once a second until it is heard: some libraries catch all."""

    def over(*_: object) -> None:
        raise TimeoutError("the time for all parts is over (--minutes)")

    left = end - time.monotonic()
    if left <= 0:
        over()
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, left, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _median(work: Callable[[], object], runs: int, warm_ups: int, device: torch.device) -> float:
    times = []
    for _ in range(warm_ups + runs):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[warm_ups:])


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
