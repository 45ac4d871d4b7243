"""A finished model goes to its place whole: written to a local folder, then copied, the file that vouches last."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from remembrandt.models.folders import FACTS
from remembrandt.storage import Store, open_store

REPORT = "report.json"


def publish_model(
    uri: str, save: Callable[[Path], None], settings: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Writes what `save` puts into a folder, with `report.json`, to `uri` (a path or s3://…), replacing an older model,
    and nothing else that lies there.

    A model without its last file, `remembrandt.json`, is none: nobody opens a half of one.
    """
    folder = Path(tempfile.mkdtemp(prefix="remembrandt-model-"))
    try:
        save(folder)
        (folder / REPORT).touch()
        files = sorted((path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()), key=_last)
        report = {**facts, "config": dict(settings), "files": files}
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")
        store = open_store(uri)
        older = _files_of_model(store)
        store.delete(FACTS)
        for path in files:
            store.upload(folder / path, path)
        for path in older - set(files):
            store.delete(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _files_of_model(store: Store) -> set[str]:
    """What the model there says that it consists of; other files of that folder are not ours to delete."""
    if not store.exists(REPORT):
        return set()
    try:
        return set(json.loads(store.read(REPORT)).get("files", ()))
    except (ValueError, AttributeError, TypeError):
        return set()


def _last(path: str) -> tuple[bool, str]:
    return path == FACTS, path
