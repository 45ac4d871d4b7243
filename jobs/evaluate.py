"""Measures a finished model by a protocol: figures with intervals, and pages that show what was measured.

ray job submit --working-dir . -- python jobs/evaluate.py --protocol NAME --config <file> [key=value …]

Protocols: rdm, entity-draw (Re-Imagen), first-stage. A claim that `out` has already is not measured again.
"""

import argparse
from typing import Any

from remembrandt.configuration import Config
from remembrandt.entry import run_job
from remembrandt.evaluation.entity_draw import EntityDraw, EntityDrawConfig
from remembrandt.evaluation.first_stage import FirstStageProtocol, FirstStageProtocolConfig
from remembrandt.evaluation.rdm import RdmProtocol, RdmProtocolConfig
from remembrandt.progress import say

CONFIGS: dict[str, type[Config]] = {
    "rdm": RdmProtocolConfig,
    "entity-draw": EntityDrawConfig,
    "first-stage": FirstStageProtocolConfig,
}


def main(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures as configured; the report comes back for `--json`."""
    protocol: RdmProtocol | EntityDraw | FirstStageProtocol
    if isinstance(config, RdmProtocolConfig):
        protocol = RdmProtocol(config)
    elif isinstance(config, EntityDrawConfig):
        protocol = EntityDraw(config)
    else:
        assert isinstance(config, FirstStageProtocolConfig)
        protocol = FirstStageProtocol(config)
    if arguments.dry_run:
        return {"dry_run": True, "out": config.out}
    report = protocol.run()
    say(f"{config.out}: report.json, and pages that show what was measured")
    return report


def add_protocol(parser: argparse.ArgumentParser) -> None:
    """`--protocol`."""
    parser.add_argument("--protocol", default="rdm", choices=sorted(CONFIGS), help="what is measured")


if __name__ == "__main__":
    run_job(lambda arguments: CONFIGS[arguments.protocol], main, __doc__ or "", add_protocol)
