"""Measures a finished model by a protocol: figures with intervals, and pages that show what was measured.

ray job submit --working-dir . -- python jobs/evaluate.py [--protocol NAME] --config <file> [key=value …]

Protocols: rdm, entity-draw (Re-Imagen), first-stage; without --protocol it is the one that the file names. A claim that
`out` has already is not measured again.
"""

import argparse
from pathlib import Path
from typing import Any

from remembrandt.configuration import Config, nearest, read_yaml
from remembrandt.entry import run_job
from remembrandt.errors import ConfigError
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
    parser.add_argument("--protocol", choices=sorted(CONFIGS), help="what is measured, if the file does not say it")


def chosen(arguments: argparse.Namespace) -> type[Config]:
    """The protocol that the command line names, or else the file.

    Raises:
        ConfigError: there is none of that name.
    """
    named = arguments.protocol
    if named is None and arguments.config is not None:
        named = read_yaml(Path(arguments.config)).get("protocol")
    if (name := str(named or "rdm")) not in CONFIGS:
        raise ConfigError(f"{arguments.config}: there is no protocol '{name}': {nearest(name, list(CONFIGS))}")
    return CONFIGS[name]


if __name__ == "__main__":
    run_job(chosen, main, __doc__ or "", add_protocol)
