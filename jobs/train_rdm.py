"""Trains RDM: a latent diffusion model that retrieves the neighbours of every image while it trains (P1 §3.2).

ray job submit --working-dir . -- python jobs/train_rdm.py --config <file> [key=value …]

The same command goes on with a run that was interrupted.
"""

import argparse
from typing import Any

from remembrandt.entry import run_job
from remembrandt.progress import say
from remembrandt.training.rdm import TrainRdmConfig, train_rdm


def main(config: TrainRdmConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains as configured; the report comes back for `--json`."""
    report = train_rdm(config, dry_run=arguments.dry_run)
    if not arguments.dry_run:
        say(f"{config.output}: finished after {report['steps']:,} steps")
    return report


if __name__ == "__main__":
    run_job(TrainRdmConfig, main, __doc__ or "")
