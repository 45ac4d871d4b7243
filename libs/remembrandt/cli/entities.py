"""`demo-entities`: things that a cascade has never seen, drawn with other artists' drawings at hand, and without."""

import json
from pathlib import Path
from typing import Annotated

import typer

from remembrandt.databases.database import Database
from remembrandt.databases.hits import Filter
from remembrandt.diffusion.guidance import TextNeighborGuidance
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.errors import ConfigError
from remembrandt.evaluation.pictures import images_in, picture_rows
from remembrandt.evaluation.sheets import write_sheet
from remembrandt.generation import DatabaseRef
from remembrandt.generation.cascade import CascadeGenerator, CascadeRequest, StageDraw

ENTITIES = ("strawberry", "gem-stone", "tomato")
STYLES = ("noto", "fluent-3d")
SAMPLES = 3
STAGES = (
    StageDraw(
        guidance=TextNeighborGuidance(kind="joint", text_weight=4.0),
        sampler=SamplerConfig(solver="dpm_solver++", num_inference_steps=25),
    ),
    StageDraw(
        guidance=TextNeighborGuidance(kind="joint", text_weight=1.0),
        sampler=SamplerConfig(solver="dpm_solver++", num_inference_steps=15),
    ),
)


def demo_entities(
    model: Annotated[str, typer.Argument(help="Folder of a finished cascade, or the name of a shipped one.")],
    uri: Annotated[str, typer.Argument(help="The emoji database.")],
    out: Annotated[Path, typer.Option(help="Folder for the sheets.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")] = False,
) -> None:
    """Held-out entities with two references, and with none, from the same seeds (P2 §4.2)."""
    generator, ref = CascadeGenerator.load(model), DatabaseRef(uri=uri)
    database = generator.finder.database(ref)
    requests = [
        CascadeRequest(
            text=caption,
            database=ref,
            retrieval="given",
            ids=references if given else (),
            stages=STAGES,
            seed=seed,
        )
        for caption, references in (_references(database, entity) for entity in ENTITIES)
        for given in (True, False)
        for seed in range(SAMPLES)
    ]
    drawn = [(picture.image, picture.record) for picture in generator.generate(requests)]
    rows = picture_rows(drawn, images_in(database))
    for suffix in (".png", ".html"):
        title = f"With and without references · {Path(model).name}"
        write_sheet(rows, title, out / f"samples-entities{suffix}")
    if as_json:
        print(json.dumps({"sheets": str(out), "pictures": len(drawn)}))
    else:
        print(f"sheets: {out}/samples-entities.{{html,png}}")


def _references(database: Database, entity: str) -> tuple[str, tuple[int, ...]]:
    """An entity's caption, and its drawing by each of the styles."""
    found = []
    for style in STYLES:
        ids = database.select(Filter(equals={"entity": (entity,), "style": (style,), "split": ("held-out",)}))
        found += ids[:1].tolist()
    if not found:
        raise ConfigError(f"{database.name} has no held-out drawing of '{entity}': use the database of make demo")
    return database.rows(found[:1], ["caption"])[0].caption, tuple(found)
