"""`remembrandt sample`: pictures from a prompt at the command line, and `demo-samples`, the pictures of `make demo`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from remembrandt.cli.arguments import parse_where
from remembrandt.configuration import parse_config
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.errors import ConfigError
from remembrandt.evaluation.pictures import images_in, picture_rows
from remembrandt.evaluation.sheets import write_sheet
from remembrandt.generation import DatabaseRef, Generator, PictureRequest, encode_png
from remembrandt.retrieval import parse_strategy

TEXTS = ("a red apple", "a cat", "a smiling face", "a rocket", "a sunflower", "a blue car")
CLASSES = ("bird", "flower", "building")
SWAPPED = ("a smiling face", "a red apple", "a cat")
PARTS = (("noto", "twemoji"), ("fluent-3d",))
NEW_STYLE = ("openmoji-black",)
SAMPLES = 4
SCALE = 2.0


def sample(
    model: Annotated[str, typer.Argument(help="Folder of a finished model, or the name of a shipped one.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Prompts, or class names for class_pool.")] = None,
    database: Annotated[str, typer.Option(help="Database to paint from: <root>/<name>.")] = "",
    where: Annotated[list[str] | None, typer.Option(help="Filter column=value[,value…]; repeatable.")] = None,
    strategy: Annotated[str, typer.Option(help="Such as neighbors or pseudo_query.")] = "neighbors",
    count: Annotated[int, typer.Option("-n", min=1, help="Pictures a prompt.")] = 4,
    guidance: Annotated[float, typer.Option(min=0.0, help="Guidance scale s; 1 leaves it out.")] = SCALE,
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations.")] = 25,
    solver: Annotated[str, typer.Option(help="ddim, dpm_solver++ or unipc.")] = "dpm_solver++",
    seed: Annotated[int, typer.Option(min=0, help="Of the first picture.")] = 0,
    out: Annotated[Path, typer.Option(help="Sheet (.html, .png), or a folder for pictures.")] = Path("samples"),
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")] = False,
) -> None:
    """Draws pictures from the neighbours of prompts."""
    ref = DatabaseRef(uri=database, where=parse_where(where or [])) if database else None
    chosen = parse_strategy(strategy)
    if chosen.query == "image":
        raise ConfigError("remembrandt sample starts from texts: use jobs/sample.py for images")
    sampler = parse_config(SamplerConfig, {"solver": solver, "num_inference_steps": steps}, "remembrandt sample")
    starts = list(texts or []) if chosen.query != "none" else [""]
    if not starts:
        raise ConfigError(f"strategy '{strategy}' needs a text: give one or several")
    requests = [
        PictureRequest(
            text=text, database=ref, strategy=chosen, guidance_scale=guidance, sampler=sampler, seed=seed + number
        )
        for text in starts
        for number in range(count)
    ]
    generator = Generator.load(model)
    pictures = generator.generate(requests)
    if out.suffix.lower() in (".png", ".html"):
        drawn = [(picture.image, picture.record) for picture in pictures]
        images_of = images_in(generator.database(ref)) if ref else lambda record: []
        write_sheet(picture_rows(drawn, images_of), f"{Path(model).name} · {len(drawn)} samples", out)
    else:
        out.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            (out / f"{number:04d}.png").write_bytes(encode_png(picture.image, picture.record))
    if as_json:
        print(json.dumps({"out": str(out), "records": [picture.record.to_json() for picture in pictures]}))
    else:
        print(f"wrote {out}", file=sys.stderr)


def demo_samples(
    model: Annotated[str, typer.Argument(help="Folder of a finished RDM, or the name of a shipped one.")],
    uri: Annotated[str, typer.Argument(help="The emoji database.")],
    out: Annotated[Path, typer.Option(help="Folder for the sheets.")],
    tuned: Annotated[str | None, typer.Option(help="A model trained further on black line art.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")] = False,
) -> None:
    """Samples from words, from classes, from nothing, and with the database swapped under the same seeds."""
    generator = Generator.load(model)
    whole = DatabaseRef(uri=uri)
    line_art = whole.model_copy(update={"where": {"style": NEW_STYLE}})
    sheets: dict[str, tuple[str, list[PictureRequest]]] = {
        "samples-texts": (
            "Words to new pictures",
            [_request(text, whole, "neighbors", seed) for text in TEXTS for seed in range(SAMPLES)],
        ),
        "samples-classes": (
            "Classes to new pictures",
            [_request(name, whole, "class_pool", seed) for name in CLASSES for seed in range(SAMPLES)],
        ),
        "samples-unconditional": (
            "From nothing: pseudo-queries of the likeliest rows",
            [_request("", whole, "pseudo_query", seed, top_m=m) for m in (0.01, 0.5) for seed in range(SAMPLES)],
        ),
        "samples-swap": (
            "The same words and seeds, another database",
            [
                request
                for text in SWAPPED
                for part in PARTS
                for request in _requests([text], whole.model_copy(update={"where": {"style": part}}), "neighbors")
            ],
        ),
    }
    painted = {name: (title, generator.generate(requests)) for name, (title, requests) in sheets.items()}
    if tuned is not None:
        further = Generator.load(tuned)
        pictures = [
            picture
            for text in SWAPPED
            for either in (generator, further)
            for picture in either.generate(_requests([text], line_art, "neighbors"))
        ]
        painted["samples-new-style"] = ("A style that the model had not seen, and a minute of training", pictures)
    for name, (title, pictures) in painted.items():
        drawn = [(picture.image, picture.record) for picture in pictures]
        rows = picture_rows(drawn, images_in(generator.database(whole)))
        for suffix in (".png", ".html"):
            write_sheet(rows, f"{title} · {Path(model).name}", out / f"{name}{suffix}")
    if as_json:
        print(json.dumps({"sheets": str(out), "names": list(painted)}))
    else:
        print(f"sheets: {out}/" + "{" + ",".join(painted) + "}.{html,png}")


def _requests(texts: Sequence[str], database: DatabaseRef, strategy: str) -> list[PictureRequest]:
    return [_request(text, database, strategy, seed) for text in texts for seed in range(SAMPLES)]


def _request(text: str, database: DatabaseRef, strategy: str, seed: int, **settings: float) -> PictureRequest:
    chosen = parse_strategy({"name": strategy, "num_neighbors": 4, **settings})
    return PictureRequest(text=text, database=database, strategy=chosen, guidance_scale=SCALE, seed=seed)
