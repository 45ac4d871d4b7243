"""Claims that are measured one after the other, each once: a killed evaluation goes on with those that are missing."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from remembrandt.generation import Picture
from remembrandt.progress import Progress
from remembrandt.storage import Store

RequestT = TypeVar("RequestT")
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


def measure_claims(out: Store, claims: Mapping[str, Measure]) -> dict[str, Any]:
    """Figures by claim; `parts/<claim>.json` and `parts/<claim>.html` hold what is measured already."""
    report: dict[str, Any] = {}
    for name, measure in claims.items():
        path = f"parts/{name}.json"
        if not out.exists(path):
            figures, page = measure()
            out.write(f"parts/{name}.html", page.encode())
            out.write(path, json.dumps(figures, indent=1).encode())
        report[name] = json.loads(out.read(path))
    return report
