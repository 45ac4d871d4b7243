"""Trains a small CLIP on named entities drawn in several styles, and writes it as an open_clip folder.

    ray job submit --working-dir . -- python jobs/train_clip.py --config jobs/configs/train_clip/mini-clip.yaml [key=…]

The same command continues a run that was interrupted.
"""

import argparse
from typing import Any

from remembrandt.entry import run_job
from remembrandt.progress import say
from remembrandt.training.contrastive.config import TrainClipConfig
from remembrandt.training.contrastive.evaluation import summary
from remembrandt.training.contrastive.run import train_clip


def main(config: TrainClipConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains as configured; recall goes to stderr for people, and the whole report comes back for `--json`."""
    report = train_clip(config, dry_run=arguments.dry_run)
    if not arguments.dry_run:
        say(f"{config.output}: recall@10 {summary(report['metrics'])}")
    return report


if __name__ == "__main__":
    run_job(TrainClipConfig, main, __doc__ or "")
