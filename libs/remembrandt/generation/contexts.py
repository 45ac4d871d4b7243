"""Requests → what RDM is conditioned on: rows of databases, found, read and put on record. No network but the encoder.

Letters in names: B pictures, K conditioning items, D embedding, C H W.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from remembrandt.data.decode import DecodeConfig, decode_image, to_square
from remembrandt.databases.database import Database
from remembrandt.databases.hits import PAD_ID
from remembrandt.databases.manifest import Manifest
from remembrandt.diffusion.guidance import Context
from remembrandt.encoders.base import ImageTextEncoder
from remembrandt.errors import ConfigError, EncoderMismatchError, SourceError
from remembrandt.generation.databases import OpenDatabases
from remembrandt.generation.models import model_folder
from remembrandt.generation.records import NeighborRecord, Record
from remembrandt.generation.requests import PictureRequest
from remembrandt.models.folders import read_facts
from remembrandt.models.rdm.config import RdmConfig
from remembrandt.models.rdm.model import context_of_codes
from remembrandt.models.rdm.sampling import RdmSampler
from remembrandt.retrieval import Conditioning, encode_queries, texts_to_encode

_COLUMNS = ("key", "caption", "licence")


@dataclass(frozen=True)
class FoundContext:
    """What one picture is conditioned on.

    Attributes:
        conditioning: (1, K) items; None for a model without retrieval.
        pixels_KCHW: uint8 pictures of the items, where the model is conditioned on their codes.
        record: of the finished picture.
    """

    conditioning: Conditioning | None
    pixels_KCHW: NDArray[np.uint8] | None
    record: Record


class ContextFinder:
    """Finds what pictures of one RDM are conditioned on.

    Args:
        name: of the model, for records.
        config, facts: what the model's folder says of it.
        databases: None: opened by their URIs.
    """

    def __init__(
        self, name: str, config: RdmConfig, facts: dict[str, Any], databases: OpenDatabases | None = None
    ) -> None:
        self.name, self.config, self.facts = name, config, facts
        self.databases = OpenDatabases() if databases is None else databases  # an empty one is falsy

    @classmethod
    def of_model(cls, folder: str | Path, databases: OpenDatabases | None = None) -> Self:
        """For a finished model, without loading its networks.

        Raises:
            ConfigError: no such model there.
        """
        facts = read_facts(model_folder(folder), "rdm")
        return cls(Path(folder).name, RdmConfig.model_validate(facts["model"]), facts, databases)

    def find(self, requests: Sequence[PictureRequest]) -> list[FoundContext]:
        """The context and record of each picture: one search for all pictures of equal database and strategy.

        Raises:
            ConfigError: a request without database to a model that retrieves.
            EncoderMismatchError: a database of another encoder than the model was trained with.
            SearchError: an impossible query.
        """
        if self.config.condition == "none":
            return [FoundContext(None, None, self._record(request, None)) for request in requests]
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            if request.database is None:
                raise ConfigError("this model paints from neighbours: name a database")
            groups[(*request.database.key, request.database.filter, request.strategy)].append(place)
        encoders = self._encode(requests)
        found: dict[int, FoundContext] = {}
        for places in groups.values():
            first = requests[places[0]]
            database = self.database(first)
            queries = encode_queries(
                first.strategy,
                encoders.get(database.manifest.fingerprint),
                seeds=[requests[place].seed for place in places],
                texts=[requests[place].text for place in places],
                images=[_query_image(requests[place]) for place in places] if first.strategy.query == "image" else (),
            )
            assert first.database is not None
            whole = first.strategy.condition(database, queries, first.database.filter)
            for number, place in enumerate(places):
                own = _row(whole, number)
                found[place] = FoundContext(own, self._pixels(requests[place], own), self._record(requests[place], own))
        return [found[place] for place in range(len(requests))]

    def database(self, request: PictureRequest) -> Database:
        """The opened database of a request, checked against the model."""
        assert request.database is not None
        database = self.databases[request.database]
        self.check(database.manifest)
        return database

    def check(self, manifest: Manifest) -> None:
        """Raises EncoderMismatchError unless a database version has the embeddings that the model was trained with."""
        trained, own = self.facts.get("encoder"), manifest.encoder
        if trained is not None and own is not None and dict(trained) != dict(own):
            raise EncoderMismatchError(
                f"model '{self.name}' was trained with the encoder {trained.get('architecture')} "
                f"[{str(trained.get('weights_sha256'))[:12]}], and database '{manifest.name}' was embedded with "
                f"{manifest.fingerprint}: build the database with the model's encoder"
            )

    def _pixels(self, request: PictureRequest, condition: Conditioning) -> NDArray[np.uint8] | None:
        """Pictures of the neighbours, where the model is conditioned on their codes."""
        size = self.config.codes_size
        if size is None:
            return None
        ids_K, there_K = condition.ids_BK[0], condition.mask_BK[0]
        if (ids_K[there_K] == PAD_ID).any():
            raise self._needs_pictures(request.strategy.name)
        pixels_KCHW = np.zeros((len(ids_K), 3, size, size), dtype=np.uint8)
        images = self.database(request).images(ids_K[there_K])
        for place, image in zip(np.flatnonzero(there_K), images, strict=True):
            if image is not None:
                pixels_KCHW[place] = np.asarray(to_square(image, size)).transpose(2, 0, 1)
        return pixels_KCHW

    def _needs_pictures(self, strategy: str) -> ConfigError:
        return ConfigError(
            f"model '{self.name}' is conditioned on the pictures of its neighbours, and strategy '{strategy}' gives "
            "something else: use neighbors"
        )

    def _encode(self, requests: Sequence[PictureRequest]) -> dict[Any, "_Encoded"]:
        """Every text of the batch, encoded once by the encoder that its database has."""
        asked: dict[Any, list[PictureRequest]] = defaultdict(list)
        owners: dict[Any, Database] = {}
        for request in requests:
            database = self.database(request)
            owners[database.manifest.fingerprint] = database
            asked[database.manifest.fingerprint].append(request)
        return {
            fingerprint: _Encoded(database.encoder, asked[fingerprint])
            for fingerprint, database in owners.items()
            if database.manifest.config.get("encoder") is not None
        }

    def _record(self, request: PictureRequest, condition: Conditioning | None) -> Record:
        database = self.database(request) if condition is not None else None
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

    def __init__(self, encoder: ImageTextEncoder, requests: Sequence[PictureRequest]) -> None:
        self._encoder, self.class_prompt = encoder, encoder.class_prompt
        each = [texts_to_encode(request.strategy, encoder, [request.text]) for request in requests]
        texts = list(dict.fromkeys(text for own in each for text in own))
        self._known = dict(zip(texts, encoder.encode_texts(texts), strict=True)) if texts else {}

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Looks them up."""
        return np.stack([self._known[text] for text in texts])

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Passes them on."""
        return self._encoder.encode_images(images)


def context_of(sampler: RdmSampler, found: Sequence[FoundContext]) -> Context | None:
    """One batch of what the sampler is conditioned on: embeddings, or the codes of pictures; None for the baseline.

    Raises:
        ConfigError: another number of neighbours than a model of codes was trained with.
    """
    conditions = [own.conditioning for own in found if own.conditioning is not None]
    if not conditions:
        return None
    phi, size = sampler.codes, sampler.config.codes_size
    if phi is None or size is None:
        return stack_contexts(conditions)
    wanted = sampler.config.context_dim // phi.latent_channels
    contexts = []
    for own, condition in zip(found, conditions, strict=True):
        if condition.num_neighbors != wanted:
            raise ConfigError(
                f"this model is conditioned on the pictures of {wanted} neighbours, and a request has "
                f"{condition.num_neighbors}: set num_neighbors to {wanted}"
            )
        assert own.pixels_KCHW is not None
        there_K = torch.from_numpy(condition.mask_BK[0])
        codes_KCHW = torch.zeros(wanted, phi.latent_channels, size // phi.factor, size // phi.factor)
        if there_K.any():
            codes_KCHW[there_K] = phi.encode(torch.from_numpy(own.pixels_KCHW)[there_K].float() / 255).cpu()
        contexts.append(context_of_codes(codes_KCHW[None]))
    return Context(torch.cat(contexts))


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


def read_image(given: str | bytes) -> Image.Image:
    """A picture that a request brings: the path of a file, or its content.

    Raises:
        SourceError: a file that cannot be read.
        DecodeError: not an image.
    """
    try:
        return decode_image(given if isinstance(given, bytes) else Path(given).read_bytes(), DecodeConfig())
    except OSError as error:
        raise SourceError(f"cannot read image {given!r}: {error.strerror}") from None


def _query_image(request: PictureRequest) -> Image.Image:
    if request.image is None:
        raise SourceError("strategy 'image' needs an image: set `image` to a file")
    return read_image(request.image)


def _row(conditioning: Conditioning, number: int) -> Conditioning:
    """One picture's part, (1, K)."""
    part = slice(number, number + 1)
    return Conditioning(
        conditioning.embeddings_BKD[part],
        conditioning.ids_BK[part],
        conditioning.scores_BK[part],
        conditioning.mask_BK[part],
    )


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
