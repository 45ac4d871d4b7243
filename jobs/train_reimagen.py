"""Trains the stages of Re-Imagen: pixel diffusion grounded on retrieved pairs of image and text (P2 §3.2).

ray job submit --working-dir . -- python jobs/train_reimagen.py --config <file> --stage 64|256|1024|all [key=value …]

The same command goes on with a run that was interrupted. Stages do not depend on each other: submit one job a stage,
and they train side by side on GPUs of their own.
"""

import argparse
from typing import Any

from remembrandt.entry import run_job
from remembrandt.progress import say
from remembrandt.training.reimagen import TrainReimagenConfig, train_reimagen


def main(config: TrainReimagenConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains as configured; the report comes back for `--json`."""
    report = train_reimagen(config, arguments.stage, dry_run=arguments.dry_run)
    if not arguments.dry_run:
        for size, stage in report.items():
            say(f"{config.output}/{size}: finished after {stage['steps']:,} steps")
    return report


def add_stage(parser: argparse.ArgumentParser) -> None:
    """`--stage`."""
    parser.add_argument("--stage", default="all", help="edge of the stage's pictures, or all, one after the other")


if __name__ == "__main__":
    run_job(TrainReimagenConfig, main, __doc__ or "", add_stage)
