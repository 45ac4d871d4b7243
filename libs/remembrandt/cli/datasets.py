"""`remembrandt datasets`: sample data from the package registries."""

import json
from typing import Annotated

import typer

datasets_app = typer.Typer(name="datasets", help="Prepare sample data sets.", no_args_is_help=True)


@datasets_app.command("list")
def list_datasets(as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False) -> None:
    """Names the data sets that `prepare` makes."""
    from remembrandt.data.datasets import KNOWN

    if as_json:
        rows = [{"name": known.name, "summary": known.summary, "origin": known.origin} for known in KNOWN.values()]
        typer.echo(json.dumps(rows))
        return
    for known in KNOWN.values():
        typer.echo(f"{known.name:12} {known.summary} (from {known.origin})")


@datasets_app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="A data set of `remembrandt datasets list`.")],
    out: Annotated[str, typer.Option("--out", help="Folder or s3:// URI that receives the data set.")],
    limit: Annotated[int | None, typer.Option(help="At most so many rows.")] = None,
    styles: Annotated[str | None, typer.Option(help="emoji: styles by name, with commas between.")] = None,
    size: Annotated[int | None, typer.Option(help="emoji: pixels a side (128).")] = None,
    variants: Annotated[bool, typer.Option("--variants", help="emoji: skin tones too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print dataset.json on stdout.")] = False,
) -> None:
    """Fetches, renders and writes a data set; run it again to continue after a stop."""
    from remembrandt.data.datasets import make_recipe
    from remembrandt.data.datasets import prepare as prepare_dataset
    from remembrandt.storage import open_store

    chosen = tuple(part.strip() for part in styles.split(",") if part.strip()) if styles is not None else None
    recipe = make_recipe(name, limit=limit, styles=chosen, size=size, variants=variants or None)
    summary = prepare_dataset(recipe, open_store(out))
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False))
        return
    splits = ", ".join(f"{split} {rows:,}" for split, rows in summary["splits"].items())
    typer.echo(f"{summary['name']}: {summary['rows']:,} rows ({splits}) in {out}")
    for plural in ("styles", "licences"):
        if summary[plural]:
            typer.echo(f"{plural}: " + ", ".join(f"{value} {rows:,}" for value, rows in summary[plural].items()))
    if summary["skipped"]:
        typer.echo(f"left out: {len(summary['skipped'])} (the reasons are in dataset.json)")
