"""EntityDrawBench of P2 §4.2 on any database: are entities drawn faithfully, and does retrieval help?

An entity's drawings are dealt into references, which the model is given, and the rest, against which its pictures are
compared. CLIP judges, where P2 asked people; `rating.py` asks people.

Letters in names: N entities, M pictures, D embedding.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from remembrandt.configuration import Config
from remembrandt.diffusion.guidance import TextNeighborGuidance
from remembrandt.errors import SourceError
from remembrandt.evaluation.claims import claim_of, draw_in_parts, measure_claims
from remembrandt.evaluation.metrics import bootstrap, cosine
from remembrandt.evaluation.pictures import images_in, picture_rows
from remembrandt.evaluation.plots import plot_bars, plot_curve
from remembrandt.evaluation.rating import RatedPair, rating_page
from remembrandt.evaluation.sheets import render_html
from remembrandt.generation import DatabaseRef, Picture
from remembrandt.generation.cascade import CascadeGenerator, CascadeRequest, StageDraw
from remembrandt.storage import open_store

_SHOWN = 24
SOURCES = ("right", "none", "shuffled")


class EntityDrawConfig(Config):
    """One run of `jobs/evaluate.py --protocol entity-draw`.

    Attributes:
        model: folder or name of a cascade.
        database: rows with the fields `entity` and `split`.
        category: column by which figures are also given; None: not.
        infrequent, frequent: values of `split`: entities that training never saw, and those that it saw.
        entities: of each of the two.
        templates: of prompts; `{}` stands for the entity's caption.
        best_of: pictures of a prompt; the best one counts beside the mean (P2 takes the best of four).
        num_neighbors: K of all claims but the sweep of `neighbor_counts`.
        ratios: the sweep of η.
        stages: how each stage draws; the sweeps change the first one's guidance.
        rated: pairs on the page for people.
    """

    protocol: Literal["entity-draw"] = "entity-draw"
    model: str
    database: str
    out: str
    category: str | None = None
    infrequent: str = "held-out"
    frequent: str = "train"
    entities: int = Field(40, ge=4)
    templates: tuple[str, ...] = Field(("{}",), min_length=1)
    best_of: int = Field(4, ge=1)
    num_neighbors: int = Field(2, ge=1)
    neighbor_counts: tuple[int, ...] = (1, 2, 4)
    ratios: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    stages: tuple[StageDraw, ...] = Field((StageDraw(),), min_length=1)
    rated: int = Field(30, ge=0)
    batch: int = Field(32, ge=1)
    seed: int = 0


@dataclass(frozen=True)
class Entity:
    """What is drawn.

    Attributes:
        references: rows that the model may be given; `rest`, those that its pictures are compared with.
    """

    name: str
    caption: str
    category: str
    references: tuple[int, ...]
    rest: tuple[int, ...]


class EntityDraw:
    """Draws what each claim needs, measures it, and writes report.json, pages and plots to `out`."""

    def __init__(self, config: EntityDrawConfig) -> None:
        self.config, self.ref = config, DatabaseRef(uri=config.database)
        self.generator = CascadeGenerator.load(config.model)
        self.database = self.generator.finder.database(self.ref)
        self.encoder = self.database.encoder
        self.out = open_store(config.out)
        self.out.check_writable()
        self.sets = {name: self._entities(split) for name, split in self._splits().items()}
        self.shown: list[Picture] = []
        self.rated: dict[str, list[Picture]] = {}

    def run(self) -> dict[str, Any]:
        """Every claim; then the pages for people."""
        claims = {
            "retrieval": self.retrieval,
            "neighbors": self.sweep_neighbors,
            "ratio": self.sweep_ratio,
            "guidance": self.compare_guidance,
        }
        shown = {name: partial(self._shown, name, work) for name, work in claims.items()}
        found = measure_claims(self.out, shown, claim_of(self.config, [self.config.model], self.database))
        report = {"encoder": str(self.database.manifest.fingerprint), "config": self.config.model_dump(mode="json")}
        report |= found
        self.out.write("report.json", (json.dumps(report, indent=1) + "\n").encode())
        self.out.write("retrieval.png", plot_bars(found["retrieval"], "similarity to the entity's own drawings"))
        self.out.write("ratio.png", plot_curve(found["ratio"]))
        if self.config.rated and not self.out.exists("rating.html"):
            page, key = self._rating_page()
            self.out.write("rating-key.json", json.dumps(key, indent=1).encode())
            self.out.write("rating.html", page.encode())
        return report

    def retrieval(self) -> dict[str, Any]:
        """With references, without, and with another entity's; entities that training saw, and those it never did."""
        report: dict[str, Any] = {}
        for name, entities in self.sets.items():
            for source in SOURCES:
                pictures = self._draw(entities, source, f"{name}, {source}")
                report |= {f"{name}/{source}/{k}": v for k, v in self._figures(entities, pictures).items()}
        return report

    def sweep_neighbors(self) -> dict[str, Any]:
        """K references of entities that training never saw."""
        entities = self.sets["infrequent"]
        report: dict[str, Any] = {}
        for count in self.config.neighbor_counts:
            enough = [entity for entity in entities if len(entity.references) >= count]
            if len(enough) < 4:
                continue
            pictures = self._draw(enough, "right", f"K = {count}", count=count)
            report |= {f"{count}/{key}": value for key, value in self._figures(enough, pictures).items()}
        return report

    def sweep_ratio(self) -> dict[str, Any]:
        """η: from the reference to the text."""
        entities = self.sets["infrequent"]
        report: dict[str, Any] = {}
        for ratio in self.config.ratios:
            guidance = self._guidance(kind="interleaved", interleave_ratio=ratio)
            pictures = self._draw(entities, "right", f"η = {ratio:g}", guidance)
            report |= {f"{ratio:g}/{key}": value for key, value in self._figures(entities, pictures).items()}
        return report

    def compare_guidance(self) -> dict[str, Any]:
        """The four kinds with the same weights."""
        entities = self.sets["infrequent"]
        report: dict[str, Any] = {}
        for kind in ("interleaved", "weighted", "joint", "plain"):
            pictures = self._draw(entities, "right", kind, self._guidance(kind=kind))
            report |= {f"{kind}/{key}": value for key, value in self._figures(entities, pictures).items()}
        return report

    def _splits(self) -> dict[str, str]:
        return {"infrequent": self.config.infrequent, "frequent": self.config.frequent}

    def _entities(self, split: str) -> list[Entity]:
        """Entities of a split with drawings to spare, evenly spread over all of them."""
        config = self.config
        columns = ["id", "entity", "split", "caption", *([config.category] if config.category else [])]
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in self.database.dataset.to_table(columns=columns).to_pylist():
            if row["split"] == split:
                rows.setdefault(row["entity"], []).append(row)
        enough = [name for name, own in sorted(rows.items()) if len(own) >= config.num_neighbors + 2]
        if len(enough) < 4:
            raise SourceError(
                f"database '{self.database.name}' has {len(enough)} entities of split '{split}' with "
                f"{config.num_neighbors + 2} drawings; at least 4 are needed"
            )
        places = np.linspace(0, len(enough) - 1, min(config.entities, len(enough))).round().astype(int)
        return [_deal(name, rows[name], config, seed) for seed, name in enumerate(enough[place] for place in places)]

    def _guidance(self, **changes: Any) -> TextNeighborGuidance:
        return self.config.stages[0].guidance.model_copy(update=changes)

    def _draw(
        self, entities: Sequence[Entity], source: str, what: str, guidance: TextNeighborGuidance | None = None,
        count: int | None = None,
    ) -> list[Picture]:  # fmt: skip
        """Pictures in the order entity, template, seed."""
        config, k = self.config, count or self.config.num_neighbors
        first, *later = config.stages
        stages = (first.model_copy(update={"guidance": guidance or first.guidance}), *later)
        requests = []
        for place, entity in enumerate(entities):
            other = entities[(place + len(entities) // 2) % len(entities)]
            ids = {"right": entity.references[:k], "none": (), "shuffled": other.references[:k]}[source]
            given = {"retrieval": "given", "ids": ids} if ids else {"num_neighbors": 0}
            requests += [
                CascadeRequest.model_validate(
                    {
                        "text": template.format(entity.caption),
                        "database": self.ref,
                        **given,
                        "stages": stages,
                        "seed": config.seed + seed,
                    }
                )
                for template in config.templates
                for seed in range(config.best_of)
            ]
        pictures = draw_in_parts(self.generator.generate, requests, config.batch, what)
        self.shown += pictures[:_SHOWN]
        return pictures

    def _figures(self, entities: Sequence[Entity], pictures: Sequence[Picture]) -> dict[str, Any]:
        """Similarity to the entity's other drawings and to its text: mean, and best of a prompt's pictures."""
        drawn_MD = self.encoder.encode_images([picture.image for picture in pictures])
        per_entity = len(pictures) // len(entities)
        real_ND = np.stack([self.database.embeddings(entity.rest).mean(axis=0) for entity in entities])
        text_ND = self.encoder.encode_texts([entity.caption for entity in entities])
        report: dict[str, Any] = {}
        for target, wanted_ND in (("entity", real_ND), ("text", text_ND)):
            scores = cosine(drawn_MD, np.repeat(wanted_ND, per_entity, axis=0))
            prompts = scores.reshape(len(entities), -1, self.config.best_of)
            report[target] = asdict(bootstrap(prompts.mean(axis=(1, 2)), self.config.seed))
            report[f"{target}, best"] = asdict(bootstrap(prompts.max(axis=2).mean(axis=1), self.config.seed))
            report |= self._by_category(entities, target, prompts.mean(axis=(1, 2)))
        return report

    def _by_category(self, entities: Sequence[Entity], target: str, scores_N: NDArray[Any]) -> dict[str, Any]:
        if self.config.category is None:
            return {}
        categories = np.array([entity.category for entity in entities])
        return {
            f"{target}, {name}": asdict(bootstrap(scores_N[categories == name], self.config.seed))
            for name in sorted(set(categories.tolist()))
        }

    def _shown(self, name: str, work: Any) -> tuple[dict[str, Any], str]:
        self.shown = []
        figures = work()
        drawn = [(picture.image, picture.record) for picture in self.shown]
        rows = picture_rows(drawn, images_in(self.database))
        return figures, render_html(rows, f"{name} · {Path(self.config.model).name}")

    def _rating_page(self) -> tuple[str, dict[str, Any]]:
        """With references against without, for people who do not know which is which."""
        entities = self.sets["infrequent"][: self.config.rated]
        step = len(self.config.templates) * self.config.best_of
        ours, others = (self._draw(entities, source, f"for people, {source}")[::step] for source in ("right", "none"))
        pairs = [
            RatedPair(
                entity.name,
                entity.caption,
                [image for image in self.database.images(list(entity.rest[:2])) if image is not None],
                {"with retrieval": own.image, "without": other.image},
            )
            for entity, own, other in zip(entities, ours, others, strict=True)
        ]
        return rating_page(pairs, f"EntityDraw · {Path(self.config.model).name}", self.config.seed)


def _deal(name: str, rows: list[dict[str, Any]], config: EntityDrawConfig, seed: int) -> Entity:
    """References and the rest, at least two of each kind."""
    order = np.random.default_rng([config.seed, seed]).permutation(len(rows))
    ids = [int(rows[place]["id"]) for place in order]
    most = min(max(config.num_neighbors, *config.neighbor_counts), len(ids) - 2)
    category = str(rows[0][config.category]) if config.category else ""
    return Entity(name, str(rows[0]["caption"]), category, tuple(ids[:most]), tuple(ids[most:]))
