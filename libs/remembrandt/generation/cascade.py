"""Requests → pairs of image and text → the stages of Re-Imagen → pictures with their records.

Letters in names: B pictures, K neighbours, S edge, L tokens.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
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
from remembrandt.generation.databases import OpenDatabase, OpenDatabases
from remembrandt.generation.generator import Picture
from remembrandt.generation.grid import to_images
from remembrandt.generation.records import NeighborRecord, Record
from remembrandt.generation.requests import DatabaseRef
from remembrandt.models.folders import find_model
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
    """A pair that the user gives: a file, and what it shows."""

    image: str
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
        open_database: how a database is opened; each version once.
    """

    def __init__(self, encoder: TextEncoder, open_database: OpenDatabase | None = None) -> None:
        self.encoder = encoder
        self._databases = OpenDatabases(open_database)

    def find(self, requests: Sequence[CascadeRequest]) -> "Found":
        """Texts and pairs of all pictures.

        Raises:
            SearchError: an impossible query.
            SourceError: a picture that is given cannot be read.
        """
        pairs = self._pairs(requests)
        text, about = self._texts(requests, pairs)
        return Found(text, pairs, about)

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
                part = tuple(sorted(request.database.where.items()))
                groups[(*request.database.key, part, request.retrieval, request.num_neighbors)].append(place)
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

    def _texts(self, requests: Sequence[CascadeRequest], pairs: list[list[FoundPair]]) -> tuple[Text, list[Text]]:
        """States of the prompts, and of the captions of each picture's neighbours; every text is encoded once."""
        every = dict.fromkeys([*(request.text for request in requests), *(p.caption for own in pairs for p in own)])
        states = self.encoder.encode(list(every))
        place = {text: number for number, text in enumerate(every)}
        tokens, mask = torch.from_numpy(states.tokens).float(), torch.from_numpy(states.mask)

        def of(texts: Sequence[str]) -> Text:
            rows = torch.tensor([place[text] for text in texts], dtype=torch.long)
            return Text(tokens[rows], mask[rows])

        return of([request.text for request in requests]), [of([pair.caption for pair in own]) for own in pairs]


@dataclass(frozen=True)
class Found:
    """What pictures are conditioned on.

    Attributes:
        text: states of the prompts.
        pairs: neighbours of each picture; `about`, states of their captions.
    """

    text: Text
    pairs: list[list[FoundPair]]
    about: list[Text]

    def batch(
        self, requests: Sequence[CascadeRequest], number: int, edge: int, low_res_BCHW: torch.Tensor | None
    ) -> StageBatch:
        """What stage `number` needs, its neighbours' pictures of edge `edge`."""
        settings = tuple(request.stage(number).settings for request in requests)
        seeds = tuple(request.seed for request in requests)
        return StageBatch(self.text, _neighbors(self.pairs, self.about, edge), seeds, settings, low_res_BCHW)


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
    def load(cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Opens the stages `<folder>/64`, `<folder>/256`, … that training wrote, or a cascade that ships, by name.

        Raises:
            ConfigError: no stages there, or stages that do not follow each other.
        """
        stages = [StageSampler.load(path, device, dtype) for path in stage_folders(folder)]
        return cls(Cascade(stages), Path(folder).name, PairFinder(text_encoder_of(stages[0])))

    def generate(self, requests: Sequence[CascadeRequest], on_stage: OnStage | None = None) -> list[Picture]:
        """All pictures, in the order asked. Databases, retrieval, guidance and steps may differ within one call.

        Raises:
            SearchError: an impossible query.
            SourceError: a picture that is given cannot be read.
        """
        if not requests:
            return []
        found = self.finder.find(requests)

        def batch_of(number: int, low_res_BCHW: torch.Tensor | None) -> StageBatch:
            if on_stage is not None and low_res_BCHW is not None:
                on_stage(number, len(self.cascade.stages), low_res_BCHW)
            return found.batch(requests, number, self.cascade.stages[number].config.neighbor_edge, low_res_BCHW)

        images = to_images(self.cascade.sample(batch_of)[-1])
        sizes = [stage.config.size for stage in self.cascade.stages]
        return [
            Picture(image, record_of(self.name, sizes, request, own, self.finder))
            for image, request, own in zip(images, requests, found.pairs, strict=True)
        ]

    def close(self) -> None:
        """Gives back every database."""
        self.finder.close()


def stage_folders(folder: str | Path) -> list[Path]:
    """The folders of a cascade's stages, the smallest first.

    Raises:
        ConfigError: there are none.
    """
    root = find_model(folder)
    sizes = sorted(int(path.name) for path in root.iterdir() if path.is_dir() and path.name.isdigit())
    if not sizes:
        raise ConfigError(f"{root} holds no stages (folders named by their size): train them first")
    return [root / str(size) for size in sizes]


def text_encoder_of(stage: StageSampler) -> TextEncoder:
    """The text encoder that a stage was trained with."""
    text: TextConfig = TypeAdapter(TextConfig).validate_python(stage.facts["text"])
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
    name: str, sizes: Sequence[int], request: CascadeRequest, pairs: Sequence[FoundPair], finder: PairFinder
) -> Record:
    """What made a picture; `sizes` are those of the stages."""
    database = finder.database(request.database) if request.database is not None else None
    return Record(
        model=name,
        text=request.text,
        database=database.name if database else None,
        version=database.version if database else None,
        where=request.database.where if request.database else {},
        strategy={"name": request.retrieval, "num_neighbors": len(pairs)},
        guidance_scale=request.stage(0).guidance.text_weight,
        sampler={str(size): request.stage(number).model_dump(mode="json") for number, size in enumerate(sizes)},
        seed=request.seed,
        neighbors=tuple(pair.record for pair in pairs),
    )


def _neighbors(pairs: list[list[FoundPair]], about: list[Text], edge: int) -> Neighbors:
    """Pictures and captions side by side: padded to the largest K, the padding masked."""
    most = max(1, *(len(own) for own in pairs)) if len(pairs) > 1 else max(1, len(pairs[0]))
    length, dim = about[0].tokens.shape[-2:]
    pixels_BKCHW = torch.zeros(len(pairs), most, 3, edge, edge)
    tokens = torch.zeros(len(pairs), most, length, dim)
    text_mask = torch.zeros(len(pairs), most, length, dtype=torch.bool)
    mask_BK = torch.zeros(len(pairs), most, dtype=torch.bool)
    for place, (own, text) in enumerate(zip(pairs, about, strict=True)):
        count = len(own)
        for number, pair in enumerate(own):
            square = torch.from_numpy(np.array(to_square(pair.image, edge))).permute(2, 0, 1)
            pixels_BKCHW[place, number] = square.float() / 127.5 - 1
        tokens[place, :count], text_mask[place, :count], mask_BK[place, :count] = text.tokens, text.mask, True
    return Neighbors(pixels_BKCHW, Text(tokens, text_mask), mask_BK)


def _read_pair(pair: PairConfig) -> FoundPair:
    try:
        image = decode_image(Path(pair.image).read_bytes(), DecodeConfig())
    except OSError as error:
        raise SourceError(f"cannot read image {pair.image}: {error.strerror}") from None
    return FoundPair(image, pair.caption, NeighborRecord(None, None, Path(pair.image).name, pair.caption))
