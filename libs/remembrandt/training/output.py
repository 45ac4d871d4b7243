"""A finished model goes to its place whole: written to a local folder, then copied, the file that vouches last."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from remembrandt.models.folders import FACTS
from remembrandt.storage import open_store

REPORT = "report.json"


def publish_model(
    uri: str, save: Callable[[Path], None], settings: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Writes what `save` puts into a folder, with `report.json`, to `uri` (a path or s3://…), replacing an older model.

    A model without its last file, `remembrandt.json`, is none: nobody opens a half of one.
    """
    folder = Path(tempfile.mkdtemp(prefix="remembrandt-model-"))
    try:
        save(folder)
        (folder / REPORT).write_text(json.dumps({**facts, "config": dict(settings)}, indent=1) + "\n")
        store = open_store(uri)
        store.delete(FACTS)
        files = sorted((path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()), key=_last)
        for path in files:
            store.upload(folder / path, path)
        for entry in store.files():
            if entry.path not in files:
                store.delete(entry.path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _last(path: str) -> tuple[bool, str]:
    return path == FACTS, path
