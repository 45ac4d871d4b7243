"""Builds a database version from images, and publishes it.

ray job submit --working-dir . -- python jobs/build_index.py --config jobs/configs/build_index/emoji.yaml [key=value …]
"""

import argparse
from typing import Any

from remembrandt.databases.build import build_database, format_report
from remembrandt.databases.config import BuildConfig
from remembrandt.entry import run_job
from remembrandt.progress import say


def main(config: BuildConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Builds as configured; the report goes to stderr for people, and comes back for `--json`."""
    report = build_database(config, dry_run=arguments.dry_run)
    say(format_report(report))
    return report


if __name__ == "__main__":
    run_job(BuildConfig, main, __doc__ or "")
