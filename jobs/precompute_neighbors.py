"""Finds the neighbours of every image of a train set in a database, and the proposal p_D that they give.

ray job submit --working-dir . -- python jobs/precompute_neighbors.py --config <file> [key=value …]
"""

import argparse
from typing import Any

from remembrandt.databases.neighbors import PrecomputeConfig, format_report, precompute_neighbors
from remembrandt.entry import run_job
from remembrandt.progress import say


def main(config: PrecomputeConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Computes as configured; the report goes to stderr for people, and comes back for `--json`."""
    report = precompute_neighbors(config, dry_run=arguments.dry_run)
    say(format_report(report))
    return report


if __name__ == "__main__":
    run_job(PrecomputeConfig, main, __doc__ or "")
