"""Measures a finished model by a protocol: figures with intervals, and pages that show what was measured.

ray job submit --working-dir . -- python jobs/evaluate.py --config <file> [key=value …]

A claim that `out` has already is not measured again.
"""

import argparse
from typing import Any

from remembrandt.entry import run_job
from remembrandt.evaluation.rdm import RdmProtocol, RdmProtocolConfig
from remembrandt.progress import say


def main(config: RdmProtocolConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures as configured; the report comes back for `--json`."""
    protocol = RdmProtocol(config)
    if arguments.dry_run:
        return {"dry_run": True, "out": config.out}
    report = protocol.run()
    say(f"{config.out}: report.json and parts/*.html")
    return report


if __name__ == "__main__":
    run_job(RdmProtocolConfig, main, __doc__ or "")
