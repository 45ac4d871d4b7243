"""Many pictures on a Ray cluster: numbered blocks, each drawn by an actor, written and committed; a killed job goes on.

The stages of a cascade have actors of their own: while one block is in the second stage, the next is in the first.

```
<out>/pictures/000012.png      picture number 12, its record inside
<out>/records.parquet          one row a picture, in order, written when all are there
```
"""

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from pydantic import Field, model_validator

from remembrandt.allocation import keep_freed_memory
from remembrandt.configuration import Config
from remembrandt.databases.manifest import digest
from remembrandt.diffusion.samplers import SamplerConfig, make_solver
from remembrandt.distributed import connect, num_cpus, num_gpus, plain_error, quiet_ray_data
from remembrandt.errors import ConfigError, SearchError
from remembrandt.generation.cascade import (
    CascadeRequest,
    PairFinder,
    StageDraw,
    check_text,
    record_of,
    stage_batch,
    stage_folders,
    text_encoder_of,
)
from remembrandt.generation.claim import Claim
from remembrandt.generation.contexts import ContextFinder
from remembrandt.generation.generator import Generator, Picture
from remembrandt.generation.grid import to_images
from remembrandt.generation.models import best_device, model_fingerprint, model_folder
from remembrandt.generation.records import Record, encode_png
from remembrandt.generation.requests import DatabaseRef, PictureRequest
from remembrandt.generation.versions import Request, live_versions, manifests_of, pinned
from remembrandt.models.folders import read_facts
from remembrandt.models.rdm.sampling import RdmSampler
from remembrandt.models.reimagen.config import StageConfig
from remembrandt.models.reimagen.sampling import KIND, StageSampler
from remembrandt.progress import Progress
from remembrandt.retrieval import StrategyConfig
from remembrandt.retrieval.registry import NeighborsStrategy
from remembrandt.storage import open_store
from remembrandt.storage.ledger import FileRecord, Ledger, Marker

RECORDS = "records.parquet"
_PLAIN = ("picture", "model", "text", "database", "version", "guidance_scale", "seed")
_PICTURES, _WORK = "pictures", ".sampling"
CLAIM = f"{_WORK}/requests.json"


class SampleJob(Config, ABC):
    """What every sampling job is told. Subclasses say how a model paints.

    Attributes:
        model: folder of a finished model, or the name of a shipped one.
        out: path or URI for pictures and records.
        texts: prompts; `prompts` names a file with one a line instead.
        count: pictures for each text; in all, for what starts from nothing.
        seed: of the first picture; each further one has the next.
        block_size: pictures that are drawn together and committed together.
        samplers: actors of each stage; `auto`: one a GPU, else one a two CPUs.
        precision: of the network.
    """

    model: str
    out: str
    texts: tuple[str, ...] = ()
    prompts: str | None = None
    count: int = Field(1, ge=0)
    seed: int = Field(0, ge=0)
    block_size: int = Field(16, ge=1)
    samplers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    threads: int = Field(1, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.texts and self.prompts is not None:
            raise ValueError("give `texts` or `prompts`, not both")
        return self

    @property
    def num_stages(self) -> int:
        """Networks that a picture passes through, one after the other, each in actors of its own."""
        return 1

    @abstractmethod
    def all_requests(self) -> Sequence[Request]:
        """Every picture, in order.

        Raises:
            ConfigError: there is none, or the prompt file cannot be read.
        """

    @abstractmethod
    def check(self, requests: Sequence[Any]) -> None:
        """Raises what an actor would find only later.

        Args:
            requests: with the versions of their databases.

        Raises:
            ConfigError: settings that the model cannot have, or a request without database to a model that needs one.
            VersionError: no such database or version.
            SearchError, EncoderMismatchError: a database that cannot be searched so, or of another encoder.
        """

    @abstractmethod
    def open_painter(self, stage: int) -> "Painter":
        """Called in an actor: loads one stage."""

    def all_texts(self) -> list[str]:
        """The prompts, from the file where one is named.

        Raises:
            ConfigError: it cannot be read.
        """
        if self.prompts is None:
            return list(self.texts)
        try:
            lines = Path(self.prompts).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"cannot read prompts {self.prompts}: {error.strerror}") from None
        return [line.strip() for line in lines if line.strip()]


class Painter(Protocol):
    """One stage of a model, in an actor."""

    def read(self, values: str) -> Sequence[Request]:
        """Requests from JSON."""

    def paint(self, requests: Sequence[Any], before_BCHW: torch.Tensor | None) -> "torch.Tensor | list[Picture]":
        """Finished pictures, if this is the last stage; else what the next one starts from, (B, 3, S, S) in [0, 1]."""


class SampleConfig(SampleJob):
    """One run of `jobs/sample.py` for RDM.

    Attributes:
        database, strategy, guidance_scale, sampler: of every picture that `requests` does not list.
        texts: prompts, or class names for `class_pool`.
        images: query images for the strategy `image`.
        requests: pictures with settings of their own, drawn after the others.
    """

    database: DatabaseRef | None = None
    strategy: StrategyConfig = NeighborsStrategy()
    images: tuple[str, ...] = ()
    guidance_scale: float = Field(2.0, ge=0)
    sampler: SamplerConfig = SamplerConfig(solver="dpm_solver++", num_inference_steps=25)
    requests: tuple[PictureRequest, ...] = ()

    def all_requests(self) -> list[PictureRequest]:
        """As `SampleJob` says."""
        asked = [
            PictureRequest(
                text=text,
                image=image,
                database=self.database,
                strategy=self.strategy,
                guidance_scale=self.guidance_scale,
                sampler=self.sampler,
                seed=self.seed + number,
            )
            for number, (text, image) in enumerate(
                (text, image) for text, image in self._starts() for _ in range(self.count)
            )
        ]
        if not (every := [*asked, *self.requests]):
            raise ConfigError(f"strategy '{self.strategy.name}' needs texts, prompts or images")
        return every

    def check(self, requests: Sequence[PictureRequest]) -> None:
        """As `SampleJob` says."""
        finder = ContextFinder.of_model(self.model)
        schedule = finder.config.schedule.build()
        for sampler in {request.sampler for request in requests}:
            make_solver(sampler, schedule, [])
        if finder.config.condition == "none":
            return
        if any(request.database is None for request in requests):
            raise ConfigError("this model paints from neighbours: name a database")
        for manifest in manifests_of(requests):
            finder.check(manifest)

    def open_painter(self, stage: int) -> "RdmPainter":
        """As `SampleJob` says."""
        return RdmPainter(self)

    def _starts(self) -> list[tuple[str, str | None]]:
        query = self.strategy.query
        if query == "none":
            return [("", None)]
        if query == "image":
            return [("", image) for image in self.images]
        return [(text, None) for text in self.all_texts()]


class RdmPainter:
    """A `Painter` of RDM."""

    def __init__(self, config: SampleConfig) -> None:
        sampler = RdmSampler.load(model_folder(config.model), *place(config))
        if config.compile:
            sampler.compile()
        self._generator = Generator(sampler, Path(config.model).name)

    def read(self, values: str) -> list[PictureRequest]:
        """As the protocol says."""
        return [PictureRequest.model_validate(value) for value in json.loads(values)]

    def paint(self, requests: Sequence[PictureRequest], before_BCHW: torch.Tensor | None) -> list[Picture]:
        """As the protocol says."""
        return self._generator.generate(requests)


class SampleCascadeConfig(SampleJob):
    """One run of `jobs/sample.py --model reimagen`.

    Attributes:
        database, retrieval, num_neighbors, stages: of every picture that `requests` does not list.
        requests: pictures with settings of their own, drawn after the others.
    """

    database: DatabaseRef | None = None
    retrieval: Literal["bm25", "clip"] = "bm25"
    num_neighbors: int = Field(2, ge=0)
    stages: tuple[StageDraw, ...] = Field((StageDraw(),), min_length=1)
    requests: tuple[CascadeRequest, ...] = ()

    @property
    def num_stages(self) -> int:
        """As `SampleJob` says."""
        return len(stage_folders(self.model))

    def all_requests(self) -> list[CascadeRequest]:
        """As `SampleJob` says."""
        texts = [text for text in self.all_texts() for _ in range(self.count)]
        if texts and self.database is None and self.num_neighbors:
            raise ConfigError("name a `database`, or set num_neighbors: 0 to paint without neighbours")
        asked = [
            CascadeRequest(
                text=text,
                database=self.database,
                retrieval=self.retrieval,
                num_neighbors=self.num_neighbors,
                stages=self.stages,
                seed=self.seed + number,
            )
            for number, text in enumerate(texts)
        ]
        if not (every := [*asked, *self.requests]):
            raise ConfigError("there is nothing to paint: give texts, prompts or requests")
        return every

    def check(self, requests: Sequence[CascadeRequest]) -> None:
        """As `SampleJob` says."""
        for number, folder in enumerate(stage_folders(self.model)):
            schedule = StageConfig.model_validate(read_facts(folder, KIND)["model"]).schedule
            for sampler in {request.stage(number).sampler for request in requests}:
                make_solver(sampler, schedule, [])
        searched = [request for request in requests if request.num_neighbors]
        for manifest in manifests_of(request for request in searched if request.retrieval == "bm25"):
            if manifest.bm25 is None:
                raise SearchError(f"database '{manifest.name}' was built without BM25: set retrieval: clip")
        for manifest in manifests_of(request for request in searched if request.retrieval == "clip"):
            if manifest.encoder is None:
                raise SearchError(f"database '{manifest.name}' has no embeddings: set retrieval: bm25")
        manifests_of(requests)

    def open_painter(self, stage: int) -> "StagePainter":
        """As `SampleJob` says."""
        return StagePainter(self, stage)


class StagePainter:
    """A `Painter` of one stage of a cascade."""

    def __init__(self, config: SampleCascadeConfig, number: int) -> None:
        folders = stage_folders(config.model)
        self._sizes, self._number = [int(folder.name) for folder in folders], number
        self._name = Path(config.model).name
        self._stage = StageSampler.load(folders[number], *place(config))
        if config.compile:
            self._stage.compile()
        self._finder = PairFinder(text_encoder_of(self._stage.facts))
        check_text(self._stage, self._name, self._finder.encoder)

    def read(self, values: str) -> list[CascadeRequest]:
        """As the protocol says."""
        return [CascadeRequest.model_validate(value) for value in json.loads(values)]

    def paint(
        self, requests: Sequence[CascadeRequest], before_BCHW: torch.Tensor | None
    ) -> torch.Tensor | list[Picture]:
        """As the protocol says. What a picture is conditioned on is found anew by each stage: the same each time."""
        edge = self._stage.config.neighbor_edge
        contexts = self._finder.find(requests, [edge])
        batch = stage_batch(requests, contexts, self._number, edge, before_BCHW)
        pixels_BCHW = self._stage.sample(batch)
        if self._number + 1 < len(self._sizes):
            return pixels_BCHW
        return [
            Picture(image, record_of(self._name, self._sizes, request, own, self._finder))
            for image, request, own in zip(to_images(pixels_BCHW), requests, contexts, strict=True)
        ]


def place(config: SampleJob) -> tuple[str, torch.dtype]:
    """Where an actor's network goes."""
    keep_freed_memory()
    torch.set_num_threads(config.threads)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    return best_device(), dtype


def sample_pictures(config: SampleJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Draws what is not drawn yet, and writes the records; returns a report.

    Raises:
        ConfigError: no such model, nothing to draw, more steps than it has, or `out` holds pictures of other requests.
        RemembrandtError: what a worker raised for the user.
    """
    out = open_store(config.out)
    out.check_writable()
    ledger = Ledger(out, f"{_WORK}/blocks")
    asked, begun = config.all_requests(), bool(ledger.committed())
    kept = Claim.read(out, CLAIM) if begun else None
    claim = Claim(_digest(config, asked), kept.versions if kept else live_versions(asked), config.block_size)
    if begun:
        claim.check(kept, out.uri, "pictures of other requests")
    requests = pinned(asked, claim.versions)
    config.check(requests)
    blocks = [range(i, min(i + config.block_size, len(requests))) for i in range(0, len(requests), config.block_size)]
    missing = ledger.missing(range(len(blocks)))
    left = sum(len(blocks[number]) for number in missing)
    report: dict[str, Any] = {"out": config.out, "pictures": len(requests), "drawn_now": left}
    if dry_run:
        return {**report, "dry_run": True}
    if not begun:
        claim.write(out, CLAIM)
    if missing:
        connect()
        _draw(config, requests, blocks, missing, len(requests) - left)
    out.write(RECORDS, _records(ledger))
    return report


def databases_of(config: SampleJob) -> list[DatabaseRef]:
    """Every version that the pictures of a run are painted from, once."""
    kept = Claim.read(open_store(config.out), CLAIM)
    requests = pinned(config.all_requests(), kept.versions if kept else {})
    return list({request.database.key: request.database for request in requests if request.database}.values())


def _digest(config: SampleJob, requests: Sequence[Request]) -> str:
    """Of all that a picture depends on, as the user asks for it."""
    values = [request.model_dump_json() for request in requests]
    return digest("\n".join([model_fingerprint(config.model), config.precision, *values]).encode())


def _draw(
    config: SampleJob, requests: Sequence[Request], blocks: Sequence[range], missing: Sequence[int], done: int
) -> None:
    quiet_ray_data()
    gpus, stages = num_gpus(), config.num_stages
    size = max(1, (gpus or num_cpus() // 2) // stages) if config.samplers == "auto" else config.samplers
    items = [
        {"number": number, "requests": json.dumps([requests[i].model_dump(mode="json") for i in blocks[number]])}
        for number in missing
    ]
    firsts = {number: blocks[number].start for number in missing}
    drawn: ray.data.Dataset = ray.data.from_items(items, override_num_blocks=len(items))
    for stage in range(stages):
        drawn = drawn.map(
            cast(Any, DrawBlock),  # Ray's annotations know functions only
            fn_constructor_args=(config, stage, firsts),
            compute=ray.data.ActorPoolStrategy(size=min(size, len(items)), max_tasks_in_flight_per_actor=2),
            num_cpus=0.5 / stages,
            num_gpus=1 if gpus else 0,
        )
    with Progress("sample", len(requests), "pictures", done=done) as progress:
        try:
            for result in drawn.iter_rows():
                progress.advance(int(result["pictures"]))
        except Exception as error:
            raise plain_error(error) from error


class DrawBlock:
    """Actor of one stage: draws a block; the last stage writes its pictures, then commits.

    {number, requests, pixels of the stage before} → the same with its own pixels, or {number, pictures}.
    """

    def __init__(self, config: SampleJob, stage: int, firsts: dict[int, int]) -> None:
        self._out, self._firsts = open_store(config.out), firsts
        self._painter = config.open_painter(stage)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        number = int(item["number"])
        before = torch.from_numpy(np.load(io.BytesIO(item["pixels"]))) if "pixels" in item else None
        painted = self._painter.paint(self._painter.read(item["requests"]), before)
        if isinstance(painted, torch.Tensor):
            data = io.BytesIO()
            np.save(data, painted.cpu().numpy())
            return {**item, "pixels": data.getvalue()}
        files, records = [], []
        for place_of, picture in enumerate(painted, start=self._firsts[number]):
            path, encoded = f"{_PICTURES}/{place_of:06d}.png", encode_png(picture.image, picture.record)
            self._out.write(path, encoded)
            files.append(FileRecord(path, len(encoded), digest(encoded)))
            records.append({"picture": path, **picture.record.to_json()})
        Ledger(self._out, f"{_WORK}/blocks").commit(Marker(number, tuple(files), {"records": records}))
        return {"number": number, "pictures": len(files)}


def _records(ledger: Ledger) -> bytes:
    """One parquet row a picture: settings as JSON text, neighbours as a list of structs."""
    rows = [record for _, marker in sorted(ledger.committed().items()) for record in marker.report["records"]]
    neighbor = pa.struct(
        [
            ("id", pa.int64()),
            ("score", pa.float32()),
            ("key", pa.string()),
            ("caption", pa.string()),
            ("licence", pa.string()),
            ("fields", pa.map_(pa.string(), pa.string())),
        ]
    )
    plain = [
        {
            **{
                name: row[name]
                for name in ("picture", "model", "text", "database", "version", "guidance_scale", "seed")
            },
            **{name: json.dumps(row[name]) for name in ("where", "strategy", "sampler")},
            "neighbors": [{**n, "fields": list((n["fields"] or {}).items())} for n in row["neighbors"]],
        }
        for row in rows
    ]
    schema = pa.schema(
        [
            *((name, pa.string()) for name in _PLAIN[:5]),
            ("guidance_scale", pa.float32()),
            ("seed", pa.int64()),
            *((name, pa.string()) for name in ("where", "strategy", "sampler")),
            ("neighbors", pa.list_(neighbor)),
        ]
    )
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(plain, schema=schema), data)
    return data.getvalue()


def read_pictures(out: str) -> list[tuple[str, Record]]:
    """Paths and records of a finished run, in order."""
    ledger = Ledger(open_store(out), f"{_WORK}/blocks")
    rows = [record for _, marker in sorted(ledger.committed().items()) for record in marker.report["records"]]
    return [(row["picture"], Record.from_json({k: v for k, v in row.items() if k != "picture"})) for row in rows]
