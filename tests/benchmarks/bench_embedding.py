"""Embedding pipeline of a build against the bare encoder, and against clip-retrieval's `clip_inference`.

ViT-B/32 with random weights (speed does not depend on them), bf16, 2,000 JPEG photographs of 500 × 375.

    python tests/benchmarks/bench_embedding.py [--images FOLDER] [--count 2000]

PEER_PYTHON names the interpreter of an environment with clip-retrieval
(`pip install clip-retrieval==2.45.0 'setuptools<70'`).
"""

import argparse
import json
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image

from remembrandt.configuration import parse_config
from remembrandt.data.decode import DecodeConfig, decode_image
from remembrandt.data.sources import open_source
from remembrandt.data.sources.webdataset import WebdatasetConfig
from remembrandt.databases.build import embed_job, plan_build
from remembrandt.databases.config import BuildConfig
from remembrandt.databases.embed import embed_blocks
from remembrandt.distributed import connect
from tests.benchmarks.report import median_seconds, table, write_report

SIZE = (500, 375)
PEER = Path(__file__).with_name("peer_clip_inference.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of JPEG files; made from --photos if absent")
    parser.add_argument("--photos", default=".cache/data/gcompris", help="webdataset that photographs are cut from")
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        images = arguments.images or make_photographs(arguments.photos, Path(scratch, "images"), arguments.count)
        checkpoint = make_checkpoint(Path(scratch, "vitb32.pt"))
        bare = best_forward_rate(checkpoint)
        pipeline = pipeline_rate(images, checkpoint, Path(scratch), arguments.count)
        peer = peer_rate(images, checkpoint, Path(scratch))
    best = max(bare.values())
    rows = [
        {"what": f"bare forward, {name}", "images/s": f"{rate:.1f}", "ours / this": f"{pipeline['steady'] / rate:.2f}"}
        for name, rate in bare.items()
    ]
    rows.append({"what": "build pipeline, steady", "images/s": f"{pipeline['steady']:.1f}", "ours / this": "1.00"})
    rows.append({"what": "build pipeline with start-up", "images/s": f"{pipeline['wall']:.1f}", "ours / this": ""})
    if peer is not None:
        rows.append(
            {
                "what": "clip-retrieval clip_inference, steady",
                "images/s": f"{peer:.1f}",
                "ours / this": f"{pipeline['steady'] / peer:.2f}",
            }
        )
    text = (
        "The pipeline reads, decodes, preprocesses, embeds and commits rows; start-up "
        f"({pipeline['startup']:.0f} s: Ray actors, "
        f"model loading) is counted apart. Share of the best bare rate: **{pipeline['steady'] / best:.2f}**."
    )
    path = write_report(
        "embedding",
        "Embedding pipeline",
        "make bench",
        ("ray", "torch", "open_clip_torch", "pylance"),
        [table(rows), text],
    )
    print(path.read_text())


def make_photographs(source: str, folder: Path, count: int) -> Path:
    """Random crops of real photographs, as JPEG of 500 × 375."""
    photos = open_source(WebdatasetConfig(uri=source))
    pictures = [
        decode_image(record.image, DecodeConfig())
        for block in photos.blocks(64)
        for record in photos.read(block)
        if record.image is not None
    ]
    pictures = [p for p in pictures if min(p.size) >= SIZE[1]] or pictures
    rng = random.Random(0)
    folder.mkdir(parents=True)
    for number in range(count):
        picture = pictures[number % len(pictures)]
        width = rng.uniform(0.5, 0.95) * min(picture.width, picture.height * SIZE[0] / SIZE[1])
        height = width * SIZE[1] / SIZE[0]
        left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
        crop = picture.resize(SIZE, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        crop.save(folder / f"{number:05d}.jpg", quality=90)
        (folder / f"{number:05d}.txt").write_text(f"photograph {number}")
    return folder


def make_checkpoint(path: Path) -> Path:
    """ViT-B/32 of random weights as a local checkpoint."""
    torch.manual_seed(0)
    torch.save(open_clip.create_model("ViT-B-32", pretrained=None).state_dict(), path)
    return path


def best_forward_rate(checkpoint: Path) -> dict[str, float]:
    """Images a second of the bare bf16 encoder on preloaded pixels, two threads, over batch sizes."""
    torch.set_num_threads(2)
    model = open_clip.create_model("ViT-B-32", pretrained=str(checkpoint)).eval().bfloat16()
    rates = {}
    with torch.inference_mode():
        for batch in (16, 32, 64, 128):
            pixels_BCHW = torch.randn(batch, 3, 224, 224, dtype=torch.bfloat16)
            seconds, _ = median_seconds(lambda x=pixels_BCHW: model.encode_image(x), runs=5, warmups=2)
            rates[f"batch {batch}"] = batch / seconds
    return rates


def pipeline_rate(images: Path, checkpoint: Path, scratch: Path, count: int) -> dict[str, float]:
    """Steady and overall images a second of the first stage of a build."""
    values: dict[str, Any] = {
        "uri": str(scratch / "databases" / "bench"),
        "source": {"kind": "images", "uri": str(images)},
        "encoder": {"model": "ViT-B-32", "pretrained": str(checkpoint), "precision": "bf16"},
    }
    config = parse_config(BuildConfig, values, "bench")
    plan = plan_build(config)
    connect()
    start = time.time()
    job = embed_job(config, plan)
    embed_blocks(job, config.workers, plan.items)
    end = time.time()
    ledger = plan.catalog.build_store(plan.version)
    stamps = sorted(
        (Path(ledger.uri, entry.path).stat().st_mtime, json.loads(ledger.read(entry.path))["report"]["items"])
        for entry in ledger.files()
        if entry.path.endswith(".json")
    )
    actors = config.workers.encoders if isinstance(config.workers.encoders, int) else 2
    first = stamps[actors - 1][0]
    steady = sum(items for _, items in stamps[actors:]) / (stamps[-1][0] - first)
    return {"steady": steady, "wall": count / (end - start), "startup": first - start}


def peer_rate(images: Path, checkpoint: Path, scratch: Path) -> float | None:
    """Steady images a second of clip_inference on the same images and model, if its environment is named."""
    python = os.environ.get("PEER_PYTHON")
    if not python:
        return None
    answer = scratch / "peer.json"
    subprocess.run([python, str(PEER), str(images), str(checkpoint), str(scratch / "peer"), str(answer)], check=True)
    return float(json.loads(answer.read_text())["steady"])


if __name__ == "__main__":
    main()
