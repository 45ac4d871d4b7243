"""Writes a data set block by block, so that a run that was killed continues where it stopped."""

import hashlib
import json
from typing import Any

from remembrandt.data.datasets.content import BlockReport, Content, Recipe
from remembrandt.errors import ConfigError
from remembrandt.progress import Progress, say
from remembrandt.storage import Store
from remembrandt.storage.ledger import Ledger, Marker, describe_file

SUMMARY = "dataset.json"
_MARKERS = "markers"


def prepare(recipe: Recipe, store: Store) -> dict[str, Any]:
    """Makes the data set in `store`, or continues it, or returns at once if it is finished.

    Returns:
        The content of `dataset.json`: name, rows, counts by style, licence, artist and split, skipped items with the
        reason, package versions, files with SHA-256, and the request that it answers.

    Raises:
        ConfigError: the place holds another data set, or one prepared with other options.
        ServiceError: a package cannot be fetched.
        StorageError: the place cannot be written.
    """
    request = recipe.request()
    if (summary := _finished(store, request)) is not None:
        say(f"{recipe.name}: already prepared in {store.uri}")
        return summary
    store.check_writable()
    content = recipe.open()
    digest = _digest({"request": request, "versions": dict(content.versions)})
    if others := [name for name in store.folders(_MARKERS) if name != digest]:
        raise ConfigError(
            f"{store.uri} holds an unfinished data set that was started with other options ({_MARKERS}/{others[0]}): "
            "remove the folder or choose another --out"
        )
    markers = _write_blocks(recipe.name, content, store, Ledger(store, f"{_MARKERS}/{digest}"))
    summary = _summarise(recipe, request, content, markers)
    store.write(SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False).encode())
    return summary


def _finished(store: Store, request: dict[str, Any]) -> dict[str, Any] | None:
    if not store.exists(SUMMARY):
        return None
    try:
        summary: dict[str, Any] = json.loads(store.read(SUMMARY))
        found = summary["request"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{store.uri}/{SUMMARY} was not written by this command: choose another --out") from None
    if found != request:
        changed = sorted(key for key in {*found, *request} if found.get(key) != request.get(key))
        raise ConfigError(
            f"{store.uri} already holds '{summary.get('name')}' prepared with another {', '.join(changed)}: "
            "choose another --out or remove it"
        )
    return summary


def _write_blocks(name: str, content: Content, store: Store, ledger: Ledger) -> list[Marker]:
    done = ledger.committed()
    if done:
        say(f"{name}: continuing, {len(done)} of {content.num_blocks} files are done")
    rows_done = sum(_items(BlockReport.from_json(marker.report)) for marker in done.values())
    with Progress(name, content.total, done=rows_done) as progress:
        for number in ledger.missing(range(content.num_blocks)):
            block = content.build(number)
            store.write(block.name, block.data)
            marker = Marker(number, (describe_file(store, block.name),), block.report.to_json())
            ledger.commit(marker)
            done[number] = marker
            progress.advance(_items(block.report))
    return [done[number] for number in range(content.num_blocks)]


def _items(report: BlockReport) -> int:
    return report.rows + len(report.skipped)


def _summarise(recipe: Recipe, request: dict[str, Any], content: Content, markers: list[Marker]) -> dict[str, Any]:
    total = BlockReport()
    for marker in markers:
        total.add(BlockReport.from_json(marker.report))
    files = [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for m in markers for file in m.files]
    return {
        "name": recipe.name,
        **total.to_json(),
        "versions": dict(sorted(content.versions.items())),
        "request": request,
        "files": files,
    }


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
