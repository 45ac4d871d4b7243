"""Trains an autoencoder between pictures and latents, the first stage of RDM and RARM.

ray job submit --working-dir . -- python jobs/train_first_stage.py --config <file> [key=value …]

The same command goes on with a run that was interrupted.
"""

import argparse
from typing import Any

from remembrandt.entry import run_job
from remembrandt.progress import say
from remembrandt.training.first_stage import TrainFirstStageConfig, train_first_stage


def main(config: TrainFirstStageConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains as configured; the report comes back for `--json`."""
    report = train_first_stage(config, dry_run=arguments.dry_run)
    if not arguments.dry_run:
        say(f"{config.output}: finished after {report['steps']:,} steps")
    return report


if __name__ == "__main__":
    run_job(TrainFirstStageConfig, main, __doc__ or "")
