"""`remembrandt pack`: a finished model in half precision, to be shipped."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from remembrandt.models.folders import find_model, pack_model


def pack(
    model: Annotated[str, typer.Argument(help="Folder of a finished model.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    first_stage: Annotated[
        str | None, typer.Option(help="Name of a shipped first stage that stands for the model's own, equal one.")
    ] = None,
) -> None:
    """Copies a model with fp16 weights."""
    written = pack_model(find_model(model), out, first_stage=first_stage)
    print(f"wrote {out}: {written / 1e6:.1f} MB", file=sys.stderr)
