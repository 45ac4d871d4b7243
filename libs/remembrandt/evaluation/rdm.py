"""What P1 claims of RDM, measured on entities that neither encoder nor model has seen.

Letters in names: N real pictures, M samples, D features.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from remembrandt.configuration import Config
from remembrandt.data.decode import to_square
from remembrandt.databases.database import Database
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.encoders.base import normalise
from remembrandt.errors import SourceError
from remembrandt.evaluation.claims import claim_of, draw_in_parts, measure_claims
from remembrandt.evaluation.features import MobileNetFeatures
from remembrandt.evaluation.metrics import bootstrap, cosine, frechet_distance, precision_recall, train_probe
from remembrandt.evaluation.pictures import images_in, picture_rows
from remembrandt.evaluation.sheets import render_html
from remembrandt.generation import DatabaseRef, Generator, Picture, PictureRequest
from remembrandt.retrieval import parse_strategy
from remembrandt.storage import Store, open_store

_SHOWN = 12
_PROBED = 400


class RdmProtocolConfig(Config):
    """One run of `jobs/evaluate.py` with `protocol: rdm`.

    Attributes:
        model: folder or name of an RDM; `baseline`, of an LDM of the same budget, is compared where it is given.
        database: rows with the fields `entity`, `style` and `split`.
        held_out: value of `split` that was never trained on.
        entities: how many held-out entities are drawn, and `per_entity`, how often.
        parts: styles of D and of D′.
        top_m: the sweep of unconditional sampling, and `unconditional`, pictures for each value.
        scales: the sweep of guidance.
        batch: pictures drawn at once.
    """

    protocol: Literal["rdm"] = "rdm"
    model: str
    database: str
    out: str
    baseline: str | None = None
    held_out: str = "held-out"
    entities: int = Field(60, ge=4)
    per_entity: int = Field(2, ge=1)
    num_neighbors: int = Field(4, ge=1)
    parts: tuple[tuple[str, ...], tuple[str, ...]] = (("noto", "twemoji"), ("openmoji-black",))
    top_m: tuple[float, ...] = (0.01, 0.1, 1.0)
    unconditional: int = Field(200, ge=20)
    scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    guidance_scale: float = Field(2.0, ge=0)
    sampler: SamplerConfig = SamplerConfig(solver="dpm_solver++", num_inference_steps=25)
    batch: int = Field(32, ge=1)
    seed: int = 0


class RdmProtocol:
    """Draws what each claim needs, measures it, and writes report.json to `out`, and below `parts` a page of each."""

    def __init__(self, config: RdmProtocolConfig) -> None:
        self.config, self.ref = config, DatabaseRef(uri=config.database)
        self.generator = Generator.load(config.model)
        self.database: Database = self.generator.database(self.ref)
        self.features = MobileNetFeatures()
        self.out: Store = open_store(config.out)
        self.out.check_writable()
        columns = ["id", "entity", "style", "split", "caption"]
        self.rows: list[dict[str, Any]] = self.database.dataset.to_table(columns=columns).to_pylist()
        self.shown: list[Picture] = []

    def run(self) -> dict[str, Any]:
        """Every claim, one after the other; a claim that is measured already is taken from `out`."""
        claims = {
            "neighbours": self.neighbours,
            "swap": self.swap,
            "top_m": self.sweep_top_m,
            "guidance": self.sweep_guidance,
            **({"baseline": self.against_baseline} if self.config.baseline else {}),
        }
        report: dict[str, Any] = {"features": MobileNetFeatures.name, "config": self.config.model_dump(mode="json")}
        shown = {name: partial(self._shown, name, work) for name, work in claims.items()}
        models = [model for model in (self.config.model, self.config.baseline) if model is not None]
        report |= measure_claims(self.out, shown, claim_of(self.config, models, self.database))
        self.out.write("report.json", (json.dumps(report, indent=1) + "\n").encode())
        return report

    def _shown(self, name: str, work: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], str]:
        self.shown = []
        return work(), self._page(name)

    def neighbours(self) -> dict[str, Any]:
        """Pictures from an unseen entity's own drawings against those from another's: similarity to the entity."""
        chosen = self._held_out(self.config.entities)
        names = list(chosen)
        encoder = self.database.encoder
        texts_MD = encoder.encode_texts([self._caption(name) for name in names])
        images_MD = np.stack([self.database.embeddings(chosen[name]).mean(axis=0) for name in names])
        report: dict[str, Any] = {"entities": len(names), "per_entity": self.config.per_entity}
        for kind, shift in (("right", 0), ("shuffled", len(names) // 2)):
            requests = [
                self._exemplars(chosen[names[(place + shift) % len(names)]], seed)
                for place in range(len(names))
                for seed in range(self.config.per_entity)
            ]
            pictures = self._draw(requests, f"{kind} neighbours")
            drawn_MD = encoder.encode_images([picture.image for picture in pictures])
            for target, wanted_MD in (("text", texts_MD), ("images", images_MD)):
                scores = cosine(drawn_MD, np.repeat(wanted_MD, self.config.per_entity, axis=0))
                # Samples of one entity are not independent: the entity is the unit.
                per_entity = scores.reshape(len(names), -1).mean(axis=1)
                report[f"{kind}/{target}"] = asdict(bootstrap(per_entity, self.config.seed))
        return report

    def swap(self) -> dict[str, Any]:
        """The same entities and seeds from D and from D′: how many samples a probe takes for drawings of D′."""
        first, second = self.config.parts
        real = {name: self._drawings(styles) for name, styles in (("D", first), ("D′", second))}
        features = np.concatenate([self.features(images) for images in real.values()])
        labels = [name for name, images in real.items() for _ in images]
        probe, accuracy = train_probe(features, labels, self.config.seed)
        names = list(self._held_out(self.config.entities))
        report: dict[str, Any] = {"D": first, "D′": second, "probe_accuracy_on_drawings": accuracy}
        for name, styles in (("D", first), ("D′", second)):
            ref = self.ref.model_copy(update={"where": {"style": styles}})
            requests = [self._texts(self._caption(entity), ref, place) for place, entity in enumerate(names)]
            pictures = self._draw(requests, f"database {name}")
            taken = np.array([label == "D′" for label in probe(self.features([p.image for p in pictures]))])
            report[f"taken_for_D′_from_{name}"] = asdict(bootstrap(taken.astype(float), self.config.seed))
        return report

    def sweep_top_m(self) -> dict[str, Any]:
        """Samples without text and guidance for several m: Fréchet distance, precision and recall (P1 Fig. 13a)."""
        drawings = self._drawings(None, self.config.unconditional)
        real = self._spaces(drawings)
        report: dict[str, Any] = {"pictures": self.config.unconditional, "real_pictures": len(drawings)}
        for m in self.config.top_m:
            requests = [self._unconditional(m, seed) for seed in range(self.config.unconditional)]
            unguided = [request.model_copy(update={"guidance_scale": 1.0}) for request in requests]
            pictures = self._draw(unguided, f"m = {m}")
            report[f"{m:g}"] = self._quality(real, pictures)
        return report

    def sweep_guidance(self) -> dict[str, Any]:
        """Similarity to the prompt for several guidance scales, unseen entities."""
        names = list(self._held_out(self.config.entities))
        texts_MD = self.database.encoder.encode_texts([self._caption(name) for name in names])
        report: dict[str, Any] = {"entities": len(names)}
        for scale in self.config.scales:
            requests = [
                self._texts(self._caption(name), self.ref, place).model_copy(update={"guidance_scale": scale})
                for place, name in enumerate(names)
            ]
            pictures = self._draw(requests, f"s = {scale:g}")
            drawn_MD = self.database.encoder.encode_images([picture.image for picture in pictures])
            report[f"{scale:g}"] = asdict(bootstrap(cosine(drawn_MD, texts_MD), self.config.seed))
        return report

    def against_baseline(self) -> dict[str, Any]:
        """Unconditional RDM against the model without retrieval (P1 Fig. 6), whichever way it falls."""
        assert self.config.baseline is not None
        count = self.config.unconditional
        real = self._spaces(self._drawings(None, count))
        own = self._draw([self._unconditional(1.0, seed) for seed in range(count)], "RDM")
        other = Generator.load(self.config.baseline)
        requests = [PictureRequest(seed=seed, sampler=self.config.sampler) for seed in range(count)]
        theirs = self._draw(requests, "baseline", other)
        sizes = {
            name: sum(p.numel() for p in generator.sampler.unet.parameters())
            for name, generator in (("RDM", self.generator), ("baseline", other))
        }
        return {"parameters": sizes, "RDM": self._quality(real, own), "baseline": self._quality(real, theirs)}

    def _spaces(self, images: Sequence[Image.Image]) -> dict[str, np.ndarray[Any, Any]]:
        """Features by name: a network's that learned photographs, and directions in CLIP, which knows the drawings."""
        return {"mobilenet": self.features(images), "clip": normalise(self.database.encoder.encode_images(images))}

    def _quality(self, real: Mapping[str, np.ndarray[Any, Any]], pictures: Sequence[Picture]) -> dict[str, Any]:
        samples = self._spaces([picture.image for picture in pictures])
        distance = frechet_distance(real["mobilenet"], samples["mobilenet"])
        report: dict[str, Any] = {"frechet_distance_mobilenet": distance}
        for name in samples:
            precision, recall = precision_recall(real[name], samples[name])
            report[name] = {"precision": asdict(precision), "recall": asdict(recall)}
        return report

    def _draw(self, requests: Sequence[PictureRequest], what: str, generator: Generator | None = None) -> list[Picture]:
        pictures = draw_in_parts((generator or self.generator).generate, requests, self.config.batch, what)
        self.shown += pictures[:_SHOWN]
        return pictures

    def _page(self, title: str) -> str:
        drawn = [(picture.image, picture.record) for picture in self.shown]
        return render_html(picture_rows(drawn, images_in(self.database)), f"{title} · {self.generator.name}")

    def _held_out(self, count: int) -> dict[str, list[int]]:
        """Rows of unseen entities with enough drawings, evenly spread over all of them."""
        found: dict[str, list[int]] = {}
        for row in self.rows:
            if row["split"] == self.config.held_out:
                found.setdefault(row["entity"], []).append(row["id"])
        enough = [name for name, ids in sorted(found.items()) if len(ids) >= self.config.num_neighbors]
        if len(enough) < 4:
            raise SourceError(
                f"database '{self.database.name}' has {len(enough)} entities of split '{self.config.held_out}' with "
                f"{self.config.num_neighbors} drawings; at least 4 are needed"
            )
        places = np.linspace(0, len(enough) - 1, min(count, len(enough))).round().astype(int)
        return {enough[place]: found[enough[place]][: self.config.num_neighbors] for place in places}

    def _caption(self, entity: str) -> str:
        return str(next(row["caption"] for row in self.rows if row["entity"] == entity))

    def _drawings(self, styles: Sequence[str] | None, count: int = _PROBED) -> list[Image.Image]:
        """Real pictures of the size that is drawn: features tell sharp ones from those that were enlarged."""
        ids = [row["id"] for row in self.rows if styles is None or row["style"] in styles]
        rng = np.random.default_rng(self.config.seed)
        chosen = rng.choice(ids, size=min(count, len(ids)), replace=False)
        images, edge = self.database.images(np.sort(chosen)), self.generator.sampler.size
        return [to_square(image, edge) for image in images if image is not None]

    def _exemplars(self, ids: Sequence[int], seed: int) -> PictureRequest:
        return self._request("", self.ref, {"name": "exemplars", "ids": list(ids)}, seed)

    def _texts(self, text: str, ref: DatabaseRef, seed: int) -> PictureRequest:
        return self._request(text, ref, {"name": "neighbors", "num_neighbors": self.config.num_neighbors}, seed)

    def _unconditional(self, top_m: float, seed: int) -> PictureRequest:
        strategy = {"name": "pseudo_query", "num_neighbors": self.config.num_neighbors, "top_m": top_m}
        return self._request("", self.ref, strategy, seed)

    def _request(self, text: str, ref: DatabaseRef, strategy: dict[str, Any], seed: int) -> PictureRequest:
        return PictureRequest(
            text=text,
            database=ref,
            strategy=parse_strategy(strategy),
            guidance_scale=self.config.guidance_scale,
            sampler=self.config.sampler,
            seed=self.config.seed + seed,
        )
