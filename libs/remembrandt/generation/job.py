"""Many pictures on a Ray cluster: numbered blocks, each drawn by an actor, written and committed; a killed job goes on.

```
<out>/pictures/000012.png      picture number 12, its record inside
<out>/records.parquet          one row a picture, in order, written when all are there
```
"""

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from pydantic import Field, model_validator

from remembrandt.configuration import Config
from remembrandt.databases.manifest import digest
from remembrandt.diffusion.samplers import SamplerConfig, make_solver
from remembrandt.distributed import connect, num_cpus, num_gpus, plain_error
from remembrandt.errors import ConfigError
from remembrandt.generation.generator import Generator
from remembrandt.generation.records import Record, encode_png
from remembrandt.generation.requests import DatabaseRef, PictureRequest
from remembrandt.models.folders import find_model, read_facts
from remembrandt.models.rdm.config import RdmConfig
from remembrandt.models.rdm.sampling import RdmSampler
from remembrandt.progress import Progress
from remembrandt.retrieval import StrategyConfig
from remembrandt.retrieval.registry import NeighborsStrategy
from remembrandt.storage import Store, open_store
from remembrandt.storage.ledger import FileRecord, Ledger, Marker

RECORDS = "records.parquet"
_PLAIN = ("picture", "model", "text", "database", "version", "guidance_scale", "seed")
_PICTURES, _WORK = "pictures", ".sampling"


class SampleConfig(Config):
    """One run of `jobs/sample.py`.

    Attributes:
        model: folder of a finished model.
        out: path or URI for pictures and records.
        database, strategy, guidance_scale, sampler: of every picture that `requests` does not list.
        texts: prompts, or class names for `class_pool`; `prompts` names a file with one a line instead.
        images: query images for the strategy `image`.
        count: pictures for each text or image; in all, for strategies that start from nothing.
        seed: of the first picture; each further one has the next.
        requests: pictures with settings of their own, drawn after the others.
        block_size: pictures that are drawn together and committed together.
        samplers: actors; `auto`: one a GPU, else one a two CPUs.
        precision: of the network.
    """

    model: str
    out: str
    database: DatabaseRef | None = None
    strategy: StrategyConfig = NeighborsStrategy()
    texts: tuple[str, ...] = ()
    prompts: str | None = None
    images: tuple[str, ...] = ()
    count: int = Field(1, ge=0)
    seed: int = Field(0, ge=0)
    guidance_scale: float = Field(2.0, ge=0)
    sampler: SamplerConfig = SamplerConfig(solver="dpm_solver++", num_inference_steps=25)
    requests: tuple[PictureRequest, ...] = ()
    block_size: int = Field(16, ge=1)
    samplers: int | Literal["auto"] = "auto"
    threads: int = Field(1, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> "SampleConfig":
        if self.texts and self.prompts is not None:
            raise ValueError("give `texts` or `prompts`, not both")
        return self

    def all_requests(self) -> list[PictureRequest]:
        """Every picture, in order.

        Raises:
            ConfigError: there is none, or the prompt file cannot be read.
        """
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

    def databases(self) -> list[DatabaseRef]:
        """Every version that pictures are painted from, once."""
        found = [self.database, *(request.database for request in self.requests)]
        return list({ref.key: ref for ref in found if ref is not None}.values())

    def _starts(self) -> list[tuple[str, str | None]]:
        query = self.strategy.query
        if query == "none":
            return [("", None)]
        if query == "image":
            return [("", image) for image in self.images]
        if self.prompts is None:
            return [(text, None) for text in self.texts]
        try:
            lines = Path(self.prompts).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"cannot read prompts {self.prompts}: {error.strerror}") from None
        return [(line.strip(), None) for line in lines if line.strip()]


def sample_pictures(config: SampleConfig, *, dry_run: bool = False) -> dict[str, Any]:
    """Draws what is not drawn yet, and writes the records; returns a report.

    Raises:
        ConfigError: no such model, nothing to draw, more steps than it has, or `out` holds pictures of other requests.
        RemembrandtError: what a worker raised for the user.
    """
    facts = read_facts(find_model(config.model), "rdm")
    requests, out = config.all_requests(), open_store(config.out)
    schedule = RdmConfig.model_validate(facts["model"]).schedule.build()
    for sampler in {request.sampler for request in requests}:
        make_solver(sampler, schedule, [])
    out.check_writable()
    _claim(out, config)
    blocks = [range(i, min(i + config.block_size, len(requests))) for i in range(0, len(requests), config.block_size)]
    ledger = Ledger(out, f"{_WORK}/blocks")
    missing = ledger.missing(range(len(blocks)))
    left = sum(len(blocks[number]) for number in missing)
    report: dict[str, Any] = {"out": config.out, "pictures": len(requests), "drawn_now": left}
    if dry_run:
        return {**report, "dry_run": True}
    if missing:
        connect()
        _draw(config, requests, blocks, missing, len(requests) - left)
    out.write(RECORDS, _records(ledger))
    return report


def _claim(out: Store, config: SampleConfig) -> None:
    """The folder belongs to these requests: others would be mixed up with them."""
    own = digest(config.model_dump_json(exclude={"samplers", "threads", "block_size"}).encode())
    name = f"{_WORK}/requests-{config.block_size}.sha256"
    if out.exists(name):
        if out.read(name).decode() != own:
            raise ConfigError(f"{out.uri} holds pictures of other requests: name another folder, or remove it")
        return
    if out.files(_WORK):
        raise ConfigError(f"{out.uri} was begun with another block_size: keep it, or name another folder")
    out.write(name, own.encode())


def _draw(
    config: SampleConfig, requests: Sequence[PictureRequest], blocks: Sequence[range], missing: Sequence[int], done: int
) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    gpus = num_gpus()
    size = (gpus or max(1, num_cpus() // 2)) if config.samplers == "auto" else config.samplers
    items = [
        {"number": number, "requests": json.dumps([requests[i].model_dump(mode="json") for i in blocks[number]])}
        for number in missing
    ]
    firsts = {number: blocks[number].start for number in missing}
    drawn = ray.data.from_items(items, override_num_blocks=len(items)).map(
        cast(Any, DrawBlock),  # Ray's annotations know functions only
        fn_constructor_args=(config, firsts),
        compute=ray.data.ActorPoolStrategy(size=min(size, len(items)), max_tasks_in_flight_per_actor=2),
        num_cpus=0.5,
        num_gpus=1 if gpus else 0,
    )
    with Progress("sample", len(requests), "pictures", done=done) as progress:
        try:
            for result in drawn.iter_rows():
                progress.advance(int(result["pictures"]))
        except Exception as error:
            raise plain_error(error) from error


class DrawBlock:
    """Actor: draws a block, writes its pictures, then commits; yields {number, pictures}."""

    def __init__(self, config: SampleConfig, firsts: dict[int, int]) -> None:
        self._out, self._firsts = open_store(config.out), firsts
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(config.threads)
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        sampler = RdmSampler.load(config.model, device, dtype)
        if config.compile:
            sampler.compile()
        self._generator = Generator(sampler, Path(config.model).name)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        number = int(item["number"])
        requests = [PictureRequest.model_validate(values) for values in json.loads(item["requests"])]
        files, records = [], []
        for place, picture in enumerate(self._generator.generate(requests), start=self._firsts[number]):
            path, data = f"{_PICTURES}/{place:06d}.png", encode_png(picture.image, picture.record)
            self._out.write(path, data)
            files.append(FileRecord(path, len(data), digest(data)))
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
