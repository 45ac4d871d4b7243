"""Runs in the peer's environment: steady rate of clip-retrieval's `clip_inference`.

Arguments: images, checkpoint, output, file for the answer (its logger processes print to stdout at will).

The model is loaded and warmed up before the clock starts. The rate is over the batches that began 20 s after the first:
its two logger processes load torch before that and slow everything down.
"""

import importlib
import json
import sys
from pathlib import Path


def main(images: str, checkpoint: str, output: str, answer: str) -> None:
    import all_clip.main
    import torch

    clip_inference = importlib.import_module("clip_retrieval.clip_inference.main").main
    logger = importlib.import_module("clip_retrieval.clip_inference.logger").LoggerWriter
    name = f"open_clip:ViT-B-32/{checkpoint}"
    all_clip.main.warmup = lambda *_, **__: None
    all_clip.main.load_clip(clip_model=name, use_jit=False, warmup_batch_size=64, clip_cache_path=None)
    model = all_clip.main.load_clip_without_warmup(name, False, "cpu", None)[0]
    with torch.no_grad():
        model.encode_image(torch.zeros(8, 3, 224, 224))
    batches = []
    queue = logger.__call__

    def record(self, stats):
        batches.append(dict(stats))
        queue(self, stats)

    logger.__call__ = record
    clip_inference(
        input_dataset=images, output_folder=output, input_format="files", batch_size=64, num_prepro_workers=1,
        enable_text=False, enable_image=True, clip_model=name, use_jit=False,
    )  # fmt: skip
    steady = [b for b in batches if b["start_time"] - batches[0]["start_time"] > 20] or batches
    seconds = steady[-1]["end_time"] - steady[0]["start_time"]
    Path(answer).write_text(json.dumps({"steady": sum(b["sample_count"] for b in steady) / seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
