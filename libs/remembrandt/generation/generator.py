"""Requests → neighbours → one batch for the sampler → pictures with their records.

Letters in names: B pictures, K conditioning items, D embedding.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from remembrandt.data.decode import DecodeConfig, decode_image, to_square
from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID
from remembrandt.diffusion.guidance import Context
from remembrandt.encoders.base import ImageTextEncoder
from remembrandt.errors import ConfigError, EncoderMismatchError, SourceError
from remembrandt.generation.databases import OpenDatabase, OpenDatabases
from remembrandt.generation.grid import to_images
from remembrandt.generation.records import NeighborRecord, Record
from remembrandt.generation.requests import DatabaseRef, PictureRequest
from remembrandt.models.rdm.model import context_of_codes
from remembrandt.models.rdm.sampling import OnPicture, RdmSampler, SampleBatch, SampleSettings
from remembrandt.retrieval import Conditioning, encode_queries
from remembrandt.retrieval.strategies import class_prompt

_COLUMNS = ("key", "caption", "licence")


@dataclass(frozen=True)
class Picture:
    """A finished picture."""

    image: Image.Image
    record: Record


class Generator:
    """Draws pictures of one model from any databases of its encoder.

    Args:
        name: of the model, for records.
        open_database: how a database is opened; each version once.
    """

    def __init__(self, sampler: RdmSampler, name: str, open_database: OpenDatabase | None = None) -> None:
        self.sampler, self.name = sampler, name
        self._databases = OpenDatabases(open_database, self._check)

    def generate(self, requests: Sequence[PictureRequest], on_picture: OnPicture | None = None) -> list[Picture]:
        """All pictures, in the order asked. Databases, strategies, guidance and steps may differ within one call.

        Raises:
            ConfigError: a request without database to a model that retrieves.
            EncoderMismatchError: a database of another encoder than the model was trained with.
            SearchError: an impossible query.
        """
        if not requests:
            return []
        conditions = self._conditions(requests)
        settings = tuple(SampleSettings(r.guidance_scale, r.sampler) for r in requests)
        context = None if conditions is None else self._context(requests, conditions)
        batch = SampleBatch(context, tuple(request.seed for request in requests), settings)
        pixels_BCHW = self.sampler.sample(batch, on_picture)
        images = to_images(pixels_BCHW)
        found: Sequence[Conditioning | None] = conditions or [None] * len(requests)
        return [
            Picture(image, self._record(request, condition))
            for image, request, condition in zip(images, requests, found, strict=True)
        ]

    def database(self, ref: DatabaseRef) -> Database:
        """The opened version of a reference, checked against the model."""
        return self._databases[ref]

    def close(self) -> None:
        """Gives back every database."""
        self._databases.close()

    def _conditions(self, requests: Sequence[PictureRequest]) -> list[Conditioning] | None:
        """The conditioning of each picture, (1, K): one search for all pictures of equal database and strategy."""
        if self.sampler.config.condition == "none":
            return None
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            if request.database is None:
                raise ConfigError("this model paints from neighbours: name a database")
            part = tuple(sorted(request.database.where.items()))
            groups[(*request.database.key, part, request.strategy)].append(place)
        encoders = self._encode(requests)
        conditions: dict[int, Conditioning] = {}
        for places in groups.values():
            first = requests[places[0]]
            assert first.database is not None
            database = self.database(first.database)
            queries = encode_queries(
                first.strategy,
                encoders.get(database.manifest.fingerprint),
                seeds=[requests[place].seed for place in places],
                texts=[requests[place].text for place in places],
                images=[_query_image(requests[place]) for place in places] if first.strategy.query == "image" else (),
            )
            whole = first.strategy.condition(database, queries, first.database.filter)
            conditions |= {place: row(whole, number) for number, place in enumerate(places)}
        return [conditions[place] for place in range(len(requests))]

    def _context(self, requests: Sequence[PictureRequest], conditions: Sequence[Conditioning]) -> Context:
        """The neighbours' embeddings, or the codes of their pictures where the model was trained with those."""
        phi, size = self.sampler.codes, self.sampler.config.codes_size
        if phi is None or size is None:
            return stack_contexts(conditions)
        wanted = self.sampler.config.context_dim // phi.latent_channels
        contexts = []
        for request, condition in zip(requests, conditions, strict=True):
            assert request.database is not None
            ids_K, there_K = condition.ids_BK[0], condition.mask_BK[0]
            if condition.num_neighbors != wanted or (ids_K[there_K] == PAD_ID).any():
                raise ConfigError(
                    f"model '{self.name}' is conditioned on the pictures of {wanted} neighbours, and strategy "
                    f"'{request.strategy.name}' gives something else: use neighbors with num_neighbors {wanted}"
                )
            found = self.database(request.database).images(ids_K[there_K])
            pixels = [to_square(image, size) if image else Image.new("RGB", (size, size)) for image in found]
            codes_KCHW = torch.zeros(wanted, phi.latent_channels, size // phi.factor, size // phi.factor)
            if pixels:
                pixels_KCHW = torch.from_numpy(np.stack([np.asarray(p) for p in pixels])).permute(0, 3, 1, 2)
                codes_KCHW[torch.from_numpy(there_K)] = phi.encode(pixels_KCHW.float() / 255).cpu()
            contexts.append(context_of_codes(codes_KCHW[None]))
        return Context(torch.cat(contexts))

    def _encode(self, requests: Sequence[PictureRequest]) -> dict[Any, "_Encoded"]:
        """Every text of the batch, encoded once by the encoder that its database has."""
        texts: dict[Any, dict[str, None]] = defaultdict(dict)
        owners: dict[Any, Database] = {}
        for request in requests:
            assert request.database is not None
            database = self.database(request.database)
            fingerprint, kind = database.manifest.fingerprint, request.strategy.query
            owners[fingerprint] = database
            if kind in ("text", "class"):
                texts[fingerprint][class_prompt(request.text) if kind == "class" else request.text] = None
        return {
            fingerprint: _Encoded(database.encoder, list(texts[fingerprint]))
            for fingerprint, database in owners.items()
            if database.manifest.config.get("encoder") is not None
        }

    def _check(self, database: Database) -> None:
        trained = self.sampler.facts.get("encoder")
        own = database.manifest.encoder
        if trained is not None and own is not None and dict(trained) != dict(own):
            raise EncoderMismatchError(
                f"model '{self.name}' was trained with the encoder {trained.get('architecture')} "
                f"[{str(trained.get('weights_sha256'))[:12]}], and database '{database.name}' was embedded with "
                f"{database.manifest.fingerprint}: build the database with the model's encoder"
            )

    def _record(self, request: PictureRequest, condition: Conditioning | None) -> Record:
        database = self.database(request.database) if request.database is not None and condition is not None else None
        return Record(
            model=self.name,
            text=request.text,
            database=database.name if database else None,
            version=database.version if database else None,
            where=request.database.where if request.database else {},
            strategy=request.strategy.model_dump(mode="json"),
            guidance_scale=request.guidance_scale,
            sampler=request.sampler.model_dump(mode="json"),
            seed=request.seed,
            neighbors=_neighbor_records(database, condition) if database and condition else (),
        )


class _Encoded:
    """An encoder whose texts of this batch are encoded already, in one call."""

    def __init__(self, encoder: ImageTextEncoder, texts: Sequence[str]) -> None:
        self._encoder = encoder
        self._known = dict(zip(texts, encoder.encode_texts(list(texts)), strict=True)) if texts else {}

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Looks them up."""
        return np.stack([self._known[text] for text in texts])

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Passes them on."""
        return self._encoder.encode_images(images)


def row(conditioning: Conditioning, number: int) -> Conditioning:
    """One picture's part, (1, K)."""
    part = slice(number, number + 1)
    return Conditioning(
        conditioning.embeddings_BKD[part],
        conditioning.ids_BK[part],
        conditioning.scores_BK[part],
        conditioning.mask_BK[part],
    )


def stack_contexts(conditions: Sequence[Conditioning]) -> Context:
    """One batch of conditionings with different K: padded to the largest, the padding masked."""
    most = max(condition.num_neighbors for condition in conditions)
    dim = conditions[0].embeddings_BKD.shape[-1]
    tokens_BKD = np.zeros((len(conditions), most, dim), dtype=np.float32)
    mask_BK = np.zeros((len(conditions), most), dtype=bool)
    for place, condition in enumerate(conditions):
        tokens_BKD[place, : condition.num_neighbors] = condition.embeddings_BKD[0]
        mask_BK[place, : condition.num_neighbors] = condition.mask_BK[0]
    return Context(torch.from_numpy(tokens_BKD), None if mask_BK.all() else torch.from_numpy(mask_BK))


def _query_image(request: PictureRequest) -> Image.Image:
    if request.image is None:
        raise SourceError("strategy 'image' needs an image: set `image` to a file")
    try:
        return decode_image(Path(request.image).read_bytes(), DecodeConfig())
    except OSError as error:
        raise SourceError(f"cannot read image {request.image}: {error.strerror}") from None


def _neighbor_records(database: Database, condition: Conditioning) -> tuple[NeighborRecord, ...]:
    ids, scores, mask = condition.ids_BK[0], condition.scores_BK[0], condition.mask_BK[0]
    columns = [*_COLUMNS, *database.manifest.fields]
    rows = iter(database.rows(ids[mask & (ids != PAD_ID)], columns))
    records = []
    for row_id, score, there in zip(ids.tolist(), scores.tolist(), mask.tolist(), strict=True):
        if not there:
            continue
        known = None if np.isnan(score) else round(score, 6)
        if row_id == PAD_ID:
            records.append(NeighborRecord(None, known))
            continue
        found = next(rows)
        records.append(NeighborRecord(row_id, known, found.key, found.caption, found.licence, dict(found.fields)))
    return tuple(records)
