"""`remembrandt ratings`: what people said on a rating page."""

import json
from pathlib import Path
from typing import Annotated

import typer

from remembrandt.errors import SourceError
from remembrandt.evaluation.rating import QUESTIONS, summarise


def ratings(
    key: Annotated[Path, typer.Argument(help="rating-key.json beside the page.")],
    files: Annotated[list[Path], typer.Argument(help="Saved ratings, one file a person.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")] = False,
) -> None:
    """Shares of yes by method with 95 % intervals, and how far people agree."""
    try:
        methods = json.loads(key.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{key} is no key of a rating page: {' '.join(str(error).split())}") from None
    report = summarise(methods, files)
    if as_json:
        print(json.dumps(report))
        return
    print(f"{report['raters']} people, {report['ratings']} pictures rated")
    for question in QUESTIONS:
        for method, share in report[question].items():
            print(f"{question:10} {method:16} {share['mean']:.2f} [{share['low']:.2f}, {share['high']:.2f}]")
        kappa = report[f"{question}, agreement"]
        print(f"{question:10} {'agreement':16} {'too few votes' if kappa is None else f'κ = {kappa:.2f}'}")
