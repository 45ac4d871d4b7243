"""Claims that are measured one after the other, each once: a killed evaluation goes on with those that are missing."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from remembrandt.storage import Store

Measure = Callable[[], tuple[dict[str, Any], str]]
"""→ figures (plain values), and a page that shows what was measured."""


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
