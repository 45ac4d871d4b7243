"""Requests → pairs of image and text → the stages of Re-Imagen → pictures with their records.

Letters in names: B pictures, K neighbours, S edge, L tokens.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, TypeAdapter, model_validator

from remembrandt.configuration import Config
from remembrandt.data.decode import DecodeConfig, decode_image, to_square
from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID, Hits
from remembrandt.diffusion.guidance import TextNeighborGuidance
from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.encoders.text import TextConfig, TextEncoder, open_text_encoder
from remembrandt.errors import ConfigError, EncoderMismatchError, SourceError
from remembrandt.generation.contexts import read_image
from remembrandt.generation.databases import OpenDatabases
from remembrandt.generation.generator import Picture
from remembrandt.generation.grid import to_images
from remembrandt.generation.models import best_device, model_folder
from remembrandt.generation.records import NeighborRecord, Record
from remembrandt.generation.requests import DatabaseRef
from remembrandt.models.reimagen.model import Neighbors, Text
from remembrandt.models.reimagen.sampling import Cascade, StageBatch, StageSampler, StageSettings

OnStage = Callable[[int, int, torch.Tensor], None]
"""Told after every stage: stages done, stages in all, its pictures (B, 3, S, S) in [0, 1]."""


class StageDraw(Config):
    """How a stage draws.

    Attributes:
        low_res_noise: level of the noise that a super-resolution stage's input gets.
    """

    guidance: TextNeighborGuidance = TextNeighborGuidance()
    sampler: SamplerConfig = SamplerConfig(num_inference_steps=64, dynamic_threshold=0.995)
    low_res_noise: float = Field(0.1, ge=0, le=1)

    @property
    def settings(self) -> StageSettings:
        """For the sampler."""
        return StageSettings(self.guidance, self.sampler, self.low_res_noise)


class PairConfig(Config):
    """A pair that the user gives: a file or its content, and what it shows."""

    image: str | bytes
    caption: str


class CascadeRequest(Config):
    """One picture.

    Attributes:
        text: the prompt; empty leaves it out.
        database: B, where neighbours come from.
        retrieval: by which the prompt finds them: BM25 of captions, CLIP of images; or `given`.
        ids, pairs: neighbours that are given, rows of the database or files.
        num_neighbors: K of the two searches; 0 paints without neighbours.
        stages: how each stage draws, the first one's first; the last is for all that follow.
        seed: of everything that is drawn. The same request gives the same picture, whatever it is drawn beside.
    """

    text: str = ""
    database: DatabaseRef | None = None
    retrieval: Literal["bm25", "clip", "given"] = "bm25"
    ids: tuple[int, ...] = ()
    pairs: tuple[PairConfig, ...] = ()
    num_neighbors: int = Field(2, ge=0)
    stages: tuple[StageDraw, ...] = Field((StageDraw(),), min_length=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.ids or self.pairs) and self.retrieval != "given":
            raise ValueError("ids and pairs are for retrieval: given")
        if self.database is None and (self.ids or (self.retrieval != "given" and self.num_neighbors)):
            raise ValueError("name a `database`, give `pairs`, or set num_neighbors: 0")
        return self

    def stage(self, number: int) -> StageDraw:
        """How stage `number` draws."""
        return self.stages[min(number, len(self.stages) - 1)]


@dataclass(frozen=True)
class FoundPair:
    """A neighbour: its picture, its caption, and what is said of it."""

    image: Image.Image
    caption: str
    record: NeighborRecord


class PairFinder:
    """Finds what pictures are conditioned on: texts and pairs, for any stage.

    Args:
        encoder: of texts.
        databases: None: opened by their URIs.
    """

    def __init__(self, encoder: TextEncoder, databases: OpenDatabases | None = None) -> None:
        self.encoder = encoder
        self._databases = OpenDatabases() if databases is None else databases  # an empty one is falsy

    @property
    def databases(self) -> OpenDatabases:
        """That neighbours come from."""
        return self._databases

    def find(self, requests: Sequence[CascadeRequest], edges: Sequence[int]) -> list["PairContext"]:
        """What each picture is conditioned on.

        Args:
            edges: of the neighbours' pictures, one a stage.

        Raises:
            SearchError: an impossible query.
            SourceError: a picture that is given cannot be read.
        """
        pairs = self._pairs(requests)
        texts = [(request.text, *(pair.caption for pair in own)) for request, own in zip(requests, pairs, strict=True)]
        every = list(dict.fromkeys(text for own in texts for text in own))
        states, place = self.encoder.encode(every), {text: number for number, text in enumerate(every)}
        contexts = []
        for own, pair in zip(texts, pairs, strict=True):
            rows = [place[text] for text in own]
            contexts.append(
                PairContext(
                    states.tokens[rows],
                    states.mask[rows],
                    {edge: _squares(pair, edge) for edge in dict.fromkeys(edges)},
                    tuple(one.record for one in pair),
                )
            )
        return contexts

    def database(self, ref: DatabaseRef) -> Database:
        """The opened version of a reference."""
        return self._databases[ref]

    def close(self) -> None:
        """Gives back every database."""
        self._databases.close()

    def _pairs(self, requests: Sequence[CascadeRequest]) -> list[list[FoundPair]]:
        """The neighbours of each picture: one search for all pictures of equal database and retrieval."""
        found: list[list[FoundPair]] = [[] for _ in requests]
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            if request.retrieval == "given":
                rows = self._rows(request.database, list(request.ids), None)
                found[place] = [*rows, *map(_read_pair, request.pairs)]
            elif request.num_neighbors and request.text.strip() and request.database is not None:
                part = (request.database.filter, request.retrieval, request.num_neighbors)
                groups[(*request.database.key, *part)].append(place)
        for places in groups.values():
            first = requests[places[0]]
            assert first.database is not None
            hits = self._search(first, [requests[place].text for place in places])
            for number, place in enumerate(places):
                there = hits.ids[number] != PAD_ID
                ids, scores = hits.ids[number][there].tolist(), hits.scores[number][there].tolist()
                found[place] = self._rows(first.database, ids, scores)
        return found

    def _search(self, request: CascadeRequest, texts: list[str]) -> Hits:
        assert request.database is not None
        database, k, where = self.database(request.database), request.num_neighbors, request.database.filter
        if request.retrieval == "bm25":
            return database.search_bm25(texts, k, where)
        return database.search_embeddings(database.encoder.encode_texts(texts), k, where)

    def _rows(self, ref: DatabaseRef | None, ids: list[int], scores: list[float] | None) -> list[FoundPair]:
        if not ids or ref is None:
            return []
        database = self.database(ref)
        columns = ["key", "caption", "licence", "image", *database.manifest.fields]
        pairs = []
        for place, row in enumerate(database.rows(ids, columns)):
            if row.image is None:
                raise SourceError(f"row '{row.key}' of '{database.name}' has no image: Re-Imagen needs pairs")
            score = None if scores is None else round(scores[place], 6)
            record = NeighborRecord(row.id, score, row.key, row.caption, row.licence, dict(row.fields))
            pairs.append(FoundPair(decode_image(row.image, DecodeConfig()), row.caption, record))
        return pairs


@dataclass(frozen=True)
class PairContext:
    """What one picture is conditioned on.

    Attributes:
        tokens: (1 + K, L, D) states of the prompt, then of each neighbour's caption; `mask` (1 + K, L).
        pixels: edge → uint8 pictures (K, 3, edge, edge) of the neighbours.
        records: of the neighbours.
    """

    tokens: NDArray[np.float16]
    mask: NDArray[np.bool_]
    pixels: Mapping[int, NDArray[np.uint8]]
    records: tuple[NeighborRecord, ...]


def stage_batch(
    requests: Sequence[CascadeRequest],
    contexts: Sequence[PairContext],
    number: int,
    edge: int,
    low_res_BCHW: torch.Tensor | None,
) -> StageBatch:
    """What stage `number` needs: neighbours of edge `edge` side by side, padded to the largest K and masked there."""
    count, most = len(contexts), max([1, *(len(own.records) for own in contexts)])
    length, dim = contexts[0].tokens.shape[-2:]
    pixels_BKCHW = torch.zeros(count, most, 3, edge, edge)
    tokens = torch.zeros(count, most, length, dim)
    text_mask = torch.zeros(count, most, length, dtype=torch.bool)
    mask_BK = torch.zeros(count, most, dtype=torch.bool)
    for place, own in enumerate(contexts):
        k = len(own.records)
        if k:
            pixels_BKCHW[place, :k] = torch.from_numpy(own.pixels[edge]).float() / 127.5 - 1
        tokens[place, :k] = torch.from_numpy(own.tokens[1:]).float()
        text_mask[place, :k], mask_BK[place, :k] = torch.from_numpy(own.mask[1:]), True
    prompts = Text(
        torch.from_numpy(np.stack([own.tokens[0] for own in contexts])).float(),
        torch.from_numpy(np.stack([own.mask[0] for own in contexts])),
    )
    return StageBatch(
        prompts,
        Neighbors(pixels_BKCHW, Text(tokens, text_mask), mask_BK),
        tuple(request.seed for request in requests),
        tuple(request.stage(number).settings for request in requests),
        low_res_BCHW,
    )


class CascadeGenerator:
    """Draws pictures of one cascade from any databases.

    Args:
        name: of the model, for records.
        finder: with the text encoder that every stage was trained with.
    """

    def __init__(self, cascade: Cascade, name: str, finder: PairFinder) -> None:
        self.cascade, self.name, self.finder = cascade, name, finder
        for stage in cascade.stages:
            check_text(stage, name, finder.encoder)

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None, dtype: torch.dtype = torch.float32) -> Self:
        """Opens the stages `<folder>/64`, `<folder>/256`, … that training wrote, or a cascade that ships, by name.

        Args:
            device: None: a GPU where there is one.

        Raises:
            ConfigError: no stages there, or stages that do not follow each other.
        """
        stages = [StageSampler.load(path, device or best_device(), dtype) for path in stage_folders(folder)]
        return cls(Cascade(stages), Path(folder).name, PairFinder(text_encoder_of(stages[0].facts)))

    @property
    def edges(self) -> list[int]:
        """Of the neighbours' pictures, one a stage."""
        return [stage.config.neighbor_edge for stage in self.cascade.stages]

    def generate(self, requests: Sequence[CascadeRequest], on_stage: OnStage | None = None) -> list[Picture]:
        """All pictures, in the order asked. Databases, retrieval, guidance and steps may differ within one call.

        Raises:
            SearchError: an impossible query.
            SourceError: a picture that is given cannot be read.
        """
        if not requests:
            return []
        contexts = self.finder.find(requests, self.edges)

        def batch_of(number: int, low_res_BCHW: torch.Tensor | None) -> StageBatch:
            if on_stage is not None and low_res_BCHW is not None:
                on_stage(number, len(self.cascade.stages), low_res_BCHW)
            return stage_batch(requests, contexts, number, self.edges[number], low_res_BCHW)

        images = to_images(self.cascade.sample(batch_of)[-1])
        sizes = [stage.config.size for stage in self.cascade.stages]
        return [
            Picture(image, record_of(self.name, sizes, request, own, self.finder))
            for image, request, own in zip(images, requests, contexts, strict=True)
        ]

    def close(self) -> None:
        """Gives back every database."""
        self.finder.close()


def stage_folders(folder: str | Path) -> list[Path]:
    """The folders of a cascade's stages, the smallest first.

    Raises:
        ConfigError: there are none.
    """
    root = model_folder(folder)
    sizes = sorted(int(path.name) for path in root.iterdir() if path.is_dir() and path.name.isdigit())
    if not sizes:
        raise ConfigError(f"{root} holds no stages (folders named by their size): train them first")
    return [root / str(size) for size in sizes]


def text_encoder_of(facts: Mapping[str, Any]) -> TextEncoder:
    """The text encoder that a stage was trained with, as its folder says."""
    text: TextConfig = TypeAdapter(TextConfig).validate_python(facts["text"])
    return open_text_encoder(text)


def check_text(stage: StageSampler, name: str, encoder: TextEncoder) -> None:
    """Raises EncoderMismatchError unless a stage was trained with this text encoder."""
    wanted = stage.facts.get("text_fingerprint")
    if wanted is not None and wanted != encoder.fingerprint:
        raise EncoderMismatchError(
            f"stage {stage.config.size} of '{name}' was trained with text encoder {wanted}, not with "
            f"{encoder.fingerprint}: use the one that its {stage.facts.get('text')} names"
        )


def record_of(
    name: str, sizes: Sequence[int], request: CascadeRequest, context: PairContext, finder: PairFinder
) -> Record:
    """What made a picture; `sizes` are those of the stages."""
    database = finder.database(request.database) if request.database is not None else None
    return Record(
        model=name,
        text=request.text,
        database=database.name if database else None,
        version=database.version if database else None,
        where=request.database.where if request.database else {},
        strategy={"name": request.retrieval, "num_neighbors": len(context.records)},
        guidance_scale=request.stage(0).guidance.text_weight,
        sampler={str(size): request.stage(number).model_dump(mode="json") for number, size in enumerate(sizes)},
        seed=request.seed,
        neighbors=context.records,
    )


def _squares(pairs: Sequence[FoundPair], edge: int) -> NDArray[np.uint8]:
    if not pairs:
        return np.zeros((0, 3, edge, edge), dtype=np.uint8)
    return np.stack([np.asarray(to_square(pair.image, edge)).transpose(2, 0, 1) for pair in pairs])


def _read_pair(pair: PairConfig) -> FoundPair:
    name = "" if isinstance(pair.image, bytes) else Path(pair.image).name
    return FoundPair(read_image(pair.image), pair.caption, NeighborRecord(None, None, name, pair.caption))
