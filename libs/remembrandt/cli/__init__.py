"""The command `remembrandt`.

Every command takes `--json`: its result as JSON on stdout, progress on stderr. A mistake that the user can mend ends
with one line, `error: …`, and the error's exit code; an interrupt with 130.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from remembrandt import __version__


@dataclass(frozen=True)
class _Entry:
    """A command that is imported when it is used: `module` has `attribute`, a function or a `typer.Typer`."""

    module: str
    attribute: str
    help: str
    hidden: bool = False


_ENTRIES = {
    "search": _Entry("search", "search", "Find the rows nearest to a text, an image or another row."),
    "db": _Entry("database", "database_app", "List, show, verify, publish, roll back and prune versions."),
    "plan": _Entry("plan", "plan", "Shards, memory, disk, time and cost of a database before it is built."),
    "datasets": _Entry("datasets", "datasets_app", "Prepare sample data sets from package registries."),
    "pack": _Entry("models", "pack", "Copy a finished model in half precision."),
    "ratings": _Entry("ratings", "ratings", "What people said on a page of `evaluate.py --protocol entity-draw`."),
    "tenants": _Entry("tenants", "tenants_app", "Tenants of a service, their keys and limits."),
    "sample": _Entry("sample", "sample", "Draw pictures from the neighbours of prompts."),
    "demo-entities": _Entry("entities", "demo_entities", "Entities that a cascade never saw (make demo).", hidden=True),
    "demo-samples": _Entry("sample", "demo_samples", "Samples from the emoji database (make demo).", hidden=True),
    "demo-sheets": _Entry("demo", "demo_sheets", "Contact sheets of the emoji database (make demo).", hidden=True),
}


class _LazyGroup(TyperGroup):
    """Knows its commands by name and help alone, so that `--help` does not wait for torch and Ray."""

    def __init__(self, **attributes: Any) -> None:
        attributes["commands"] = {
            name: TyperCommand(name=name, help=entry.help, hidden=entry.hidden) for name, entry in _ENTRIES.items()
        }
        super().__init__(**attributes)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and _load(name), rest

    def invoke(self, ctx: Any) -> Any:
        from remembrandt.allocation import keep_freed_memory
        from remembrandt.entry import one_line_errors  # imports Ray, which the list of commands can do without

        keep_freed_memory()
        with one_line_errors():
            return super().invoke(ctx)


app = typer.Typer(
    name="remembrandt",
    cls=_LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Image databases that models paint from.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"remembrandt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _load(name: str) -> Any:
    entry = _ENTRIES[name]
    found = getattr(import_module(f"remembrandt.cli.{entry.module}"), entry.attribute)
    parent = typer.Typer(add_completion=False)
    parent.callback()(lambda: None)
    if isinstance(found, typer.Typer):
        parent.add_typer(found, name=name, help=entry.help)
    else:
        parent.command(name)(found)
    return typer.main.get_group(parent).commands[name]
