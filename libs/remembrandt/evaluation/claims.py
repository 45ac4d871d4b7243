"""Claims that are measured one after the other, each once: a killed evaluation goes on with those that are missing."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from remembrandt.configuration import Config
from remembrandt.databases.database import Database
from remembrandt.databases.manifest import digest
from remembrandt.generation import Picture
from remembrandt.generation.claim import Claim
from remembrandt.generation.models import model_fingerprint
from remembrandt.progress import Progress
from remembrandt.storage import Store

RequestT = TypeVar("RequestT")
_CLAIM = "parts/asked"
Measure = Callable[[], tuple[dict[str, Any], str]]
"""→ figures (plain values), and a page that shows what was measured."""


def draw_in_parts(
    generate: Callable[[Sequence[RequestT]], list[Picture]], requests: Sequence[RequestT], batch: int, what: str
) -> list[Picture]:
    """All pictures, `batch` at once, with progress."""
    pictures: list[Picture] = []
    with Progress(f"drawing: {what}", len(requests), "pictures") as progress:
        for first in range(0, len(requests), batch):
            pictures += generate(requests[first : first + batch])
            progress.advance(len(requests[first : first + batch]))
    return pictures


def measure_claims(out: Store, claims: Mapping[str, Measure], asked: Claim) -> dict[str, Any]:
    """Figures by claim; `parts/<claim>.json` and `parts/<claim>.html` hold what is measured already.

    Args:
        asked: what the figures depend on.

    Raises:
        ConfigError: what is measured already depends on something else.
    """
    if any(out.exists(f"parts/{name}.json") for name in claims):
        asked.check(Claim.read(out, _CLAIM), out.uri, "figures of another model, database or configuration")
    else:
        asked.write(out, _CLAIM)
    report: dict[str, Any] = {}
    for name, measure in claims.items():
        path = f"parts/{name}.json"
        if not out.exists(path):
            figures, page = measure()
            out.write(f"parts/{name}.html", page.encode())
            out.write(path, json.dumps(figures, indent=1).encode())
        report[name] = json.loads(out.read(path))
    return report


def claim_of(config: Config, models: Sequence[str], database: Database) -> Claim:
    """What the figures of a protocol depend on: its configuration, the models' weights, the database's version."""
    values = config.model_dump_json(exclude={"out", "batch"})
    asked = digest("\n".join([values, *(model_fingerprint(model) for model in models), database.version]).encode())
    return Claim(asked, {database.name: database.version})
