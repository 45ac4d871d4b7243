"""`remembrandt db …`: look at versions, check them, move the live one, take them in and out."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from remembrandt.configuration import parse_config
from remembrandt.databases.build import build_database, format_report
from remembrandt.databases.catalog import Catalog
from remembrandt.databases.config import BuildConfig
from remembrandt.databases.database import Database
from remembrandt.databases.exchange import diff_versions, export_clip_retrieval
from remembrandt.databases.maintenance import prune_versions, publish_version, rollback_version
from remembrandt.databases.manifest import Manifest
from remembrandt.databases.verify import verify_version
from remembrandt.progress import format_bytes
from remembrandt.storage import open_store

database_app = typer.Typer(no_args_is_help=True, help="Versions of databases.")

Uri = Annotated[str, typer.Argument(help="Database: <root>/<name>, a path or s3://…")]
Version = Annotated[str | None, typer.Option(help="Version id; the live one if absent.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]

_SHOWN_KEYS = 20


@database_app.command("list")
def list_versions(uri: Uri, as_json: AsJson = False) -> None:
    """All finished versions, oldest first; the live one is marked."""
    catalog = Catalog.open(uri)
    versions = catalog.versions()
    pointer = catalog.pointer()
    live = pointer.version if pointer is not None else None
    manifests = [catalog.manifest(version) for version in versions or [catalog.current()]]
    if as_json:
        _print_json([{**_summary(m), "live": m.version == live} for m in manifests])
        return
    for m in manifests:
        mark = "*" if m.version == live else " "
        print(f"{mark} {m.version}  {m.created_at}  {m.rows:>12,} rows  {format_bytes(m.total_bytes):>9}")


@database_app.command()
def show(uri: Uri, version: Version = None, as_json: AsJson = False) -> None:
    """What one version holds and how it is searched."""
    catalog = Catalog.open(uri)
    manifest = catalog.live_manifest() if version is None else catalog.manifest(version)
    if as_json:
        _print_json(manifest.model_dump(mode="json"))
        return
    print(f"{manifest.name}, version {manifest.version}, built {manifest.created_at} by {manifest.created_by['user']}")
    print(
        f"  rows      {manifest.rows:,} ({manifest.source.failed:,} of {manifest.source.records:,} items "
        "could not be used)"
    )
    print(f"  size      {format_bytes(manifest.total_bytes)} in {len(manifest.files)} files")
    print(f"  parent    {manifest.parent or '-'}")
    print(f"  encoder   {manifest.fingerprint or '- (text only)'}")
    if manifest.vectors:
        recall = manifest.recall or {}
        print(
            f"  vectors   {manifest.vectors.plan['factory']}, {len(manifest.vectors.shards)} shard(s), "
            f"recall@{recall.get('k')} {recall.get('recall'):.4f}"
        )
    print(f"  bm25      {manifest.bm25['backend'] if manifest.bm25 else '-'}")
    print(f"  fields    {', '.join(manifest.fields) or '-'}")
    licences = [f"{name or 'unknown'} {count:,}" for name, count in manifest.licences.items()]
    print(f"  licences  {', '.join(licences)}")


@database_app.command()
def verify(uri: Uri, version: Version = None, as_json: AsJson = False) -> None:
    """Hashes every file of a version and checks ids, counts, recall and BM25."""
    catalog = Catalog.open(uri)
    manifest = catalog.live_manifest() if version is None else catalog.manifest(version)
    report = verify_version(catalog.version_store(manifest.version), manifest)
    if as_json:
        _print_json({"version": manifest.version, "checks": list(report.checks)})
        return
    for check in report.checks:
        print(f"ok  {check}")


@database_app.command()
def publish(
    uri: Uri, version: Annotated[str, typer.Argument(help="Version to make live.")], as_json: AsJson = False
) -> None:
    """Makes a finished version live."""
    changed = publish_version(Catalog.open(uri), version)
    _say(
        as_json,
        {"live": version, "changed": changed},
        f"version {version} is live" + ("" if changed else " (it was already)"),
    )


@database_app.command()
def rollback(
    uri: Uri, to: Annotated[str | None, typer.Option(help="Version to return to.")] = None, as_json: AsJson = False
) -> None:
    """Makes the version that was live before (or --to) live again."""
    version = rollback_version(Catalog.open(uri), to)
    _say(as_json, {"live": version}, f"version {version} is live again")


@database_app.command()
def diff(uri: Uri, old: str, new: str, as_json: AsJson = False) -> None:
    """Which keys were added, removed or changed between two versions."""
    with Database.open(uri, version=old) as before, Database.open(uri, version=new) as after:
        found = diff_versions(before, after)
    if as_json:
        _print_json(asdict(found))
        return
    print(
        f"{len(found.added):,} added, {len(found.removed):,} removed, {len(found.changed):,} changed, "
        f"{found.same:,} the same"
    )
    for mark, keys in (("+", found.added), ("-", found.removed), ("~", found.changed)):
        for key in keys[:_SHOWN_KEYS]:
            print(f"{mark} {key}")
        if len(keys) > _SHOWN_KEYS:
            print(f"{mark} … and {len(keys) - _SHOWN_KEYS:,} more (--json lists all)")


@database_app.command()
def prune(
    uri: Uri,
    keep: Annotated[int, typer.Option(help="How many versions to keep besides the live one.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Removes old and unfinished versions; never the live one."""
    gone = prune_versions(Catalog.open(uri), keep, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    text = f"{verb} {len(gone.versions)} version(s) ({format_bytes(gone.bytes)}) and {len(gone.unfinished)} unfinished"
    _say(as_json, {**asdict(gone), "dry_run": dry_run}, text)


@database_app.command("import")
def import_folder(
    folder: Annotated[str, typer.Argument(help="Folder in clip-retrieval's layout (img_emb/, metadata/).")],
    uri: Uri,
    model: Annotated[
        str | None, typer.Option(help="open_clip model that made the embeddings; needed to search by text.")
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="Its pretrained tag or checkpoint.")] = None,
    as_json: AsJson = False,
) -> None:
    """Builds a database from ready embeddings, without encoding anything."""
    encoder = None if model is None else {"model": model, "pretrained": pretrained}
    values = {"uri": uri, "source": {"kind": "clip_retrieval", "uri": folder}, "encoder": encoder}
    report = build_database(parse_config(BuildConfig, values, "command line"))
    _say(as_json, report, format_report(report))


@database_app.command("export")
def export_folder(
    uri: Uri,
    folder: Annotated[str, typer.Argument(help="Where to write img_emb/, metadata/ and images/.")],
    version: Version = None,
    images: Annotated[bool, typer.Option(help="Write the image files too.")] = True,
    as_json: AsJson = False,
) -> None:
    """Writes a version in clip-retrieval's layout."""
    with Database.open(uri, version=version) as database:
        rows = export_clip_retrieval(database, open_store(folder), images=images)
    _say(as_json, {"rows": rows, "folder": folder}, f"{rows:,} rows written to {folder}")


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "created_at": manifest.created_at,
        "rows": manifest.rows,
        "bytes": manifest.total_bytes,
        "parent": manifest.parent,
    }


def _say(as_json: bool, body: dict[str, Any], text: str) -> None:
    if as_json:
        _print_json(body)
    else:
        print(text)


def _print_json(body: Any) -> None:
    print(json.dumps(body, ensure_ascii=False))
