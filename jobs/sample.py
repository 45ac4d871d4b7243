"""Draws pictures: retrieves neighbours for prompts, classes, images or nothing, and samples from them.

ray job submit --working-dir . -- python jobs/sample.py --model rdm|reimagen --config <file> [key=value …]

Pictures with their records, records.parquet and sheet.html go to `out`. The same command goes on with a run that was
interrupted.
"""

import argparse
from typing import Any

from remembrandt.entry import run_job
from remembrandt.evaluation.pictures import sheet_of_run
from remembrandt.generation.job import SampleCascadeConfig, SampleConfig, SampleJob, databases_of, sample_pictures
from remembrandt.progress import say
from remembrandt.storage import open_store

SHEET = "sheet.html"
CONFIGS: dict[str, type[SampleJob]] = {"rdm": SampleConfig, "reimagen": SampleCascadeConfig}


def main(config: SampleJob, arguments: argparse.Namespace) -> dict[str, Any]:
    """Draws as configured; the report comes back for `--json`."""
    report = sample_pictures(config, dry_run=arguments.dry_run)
    if not arguments.dry_run:
        open_store(config.out).write(SHEET, sheet_of_run(config.out, databases_of(config)).encode())
        say(f"{config.out}: {report['pictures']:,} pictures, records.parquet, {SHEET}")
    return report


def add_model(parser: argparse.ArgumentParser) -> None:
    """`--model`."""
    parser.add_argument("--model", default="rdm", choices=sorted(CONFIGS), help="what kind of model paints")


if __name__ == "__main__":
    run_job(lambda arguments: CONFIGS[arguments.model], main, __doc__ or "", add_model)
