"""Requests and answers of the HTTP API."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from remembrandt.diffusion.samplers import SolverName

Where = Annotated[dict[str, list[str]], Field(max_length=16)]
StrategyName = Literal[
    "text",
    "image",
    "text_and_neighbors",
    "neighbors",
    "class_pool",
    "pseudo_query",
    "exemplars",
    "bm25",
    "clip",
    "none",
]
_TEXT = 4_000
_SEED = 2**53 - 1
# A picture in a JSON body, as base64: larger ones are uploaded into a database instead.
_BASE64 = 8_000_000


def _has_nul(given: Any) -> bool:
    """Whether a text of a JSON value holds a NUL, which PostgreSQL does not take."""
    if isinstance(given, dict):
        return any(_has_nul(name) or _has_nul(value) for name, value in given.items())
    if isinstance(given, list):
        return any(_has_nul(value) for value in given if not isinstance(value, int | float))  # ids, embeddings
    return isinstance(given, str) and "\0" in given


class Body(BaseModel):
    """Base of every request: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nul(cls, given: Any) -> Any:
        if _has_nul(given):
            raise ValueError("a text has a NUL character: leave it out")
        return given


class Answer(BaseModel):
    """Base of every answer."""

    model_config = ConfigDict(protected_namespaces=())


class GuidanceBody(Body):
    """Guidance, as far as the model has it.

    Attributes:
        kind: `classifier_free` for RDM (P1); `interleaved`, `weighted`, `joint` or `plain` for Re-Imagen (P2).
        scale: s of RDM.
        text_weight, neighbor_weight, eta: w_p, w_n and η of Re-Imagen.
    """

    kind: Literal["classifier_free", "interleaved", "weighted", "joint", "plain"] | None = None
    scale: float | None = Field(None, ge=0, le=50)
    text_weight: float | None = Field(None, ge=0, le=50)
    neighbor_weight: float | None = Field(None, ge=0, le=50)
    eta: float | None = Field(None, ge=0, le=1)


class ExemplarBody(Body):
    """Something that the picture is to be painted after: a row of the database, or a picture, perhaps with its text."""

    row: int | None = Field(None, ge=0, le=2**62)
    image: str | None = Field(None, max_length=_BASE64, description="base64, or a data: URI")
    caption: str = Field("", max_length=_TEXT)

    @model_validator(mode="after")
    def _one(self) -> "ExemplarBody":
        if (self.row is None) == (self.image is None):
            raise ValueError("give `row` or `image`")
        return self


class GenerationBody(Body):
    """`POST /v1/images/generations`: OpenAI's fields, and ours.

    Attributes:
        size: `auto`, or the size that the model paints.
        quality, style, background, moderation, output_format, output_compression, user: taken for OpenAI's sake; only
            `output_format: png` is made, and the others have no effect.
        database: name or id; None: the default one.
        strategy: how neighbours are chosen; None: the model's usual one.
        filters: column → allowed values; only such rows are retrieved.
        without: row ids that are not to be retrieved.
        top_m, pool_size: of `pseudo_query` and `class_pool`.
        timeout: seconds after which the request is given up.
    """

    prompt: str = Field("", max_length=_TEXT)
    model: str | None = Field(None, max_length=64)
    n: int | None = Field(1, ge=1, le=64)
    size: str | None = Field(None, max_length=16)
    response_format: Literal["url", "b64_json"] | None = None
    stream: bool | None = False
    partial_images: int | None = Field(0, ge=0, le=3)
    quality: str | None = Field(None, max_length=16)
    style: str | None = Field(None, max_length=16)
    background: str | None = Field(None, max_length=16)
    moderation: str | None = Field(None, max_length=16)
    output_format: Literal["png"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    user: str | None = Field(None, max_length=256)
    database: str | None = Field(None, max_length=64)
    strategy: StrategyName | None = None
    num_neighbors: int | None = Field(None, ge=0, le=16)
    guidance: GuidanceBody | None = None
    steps: int | None = Field(None, ge=1, le=1000)
    solver: SolverName | None = None
    seed: int | None = Field(None, ge=0, le=_SEED)
    exemplars: list[ExemplarBody] = Field(default_factory=list, max_length=16)
    filters: Where = Field(default_factory=dict)
    without: list[Annotated[int, Field(ge=0, le=2**62)]] = Field(default_factory=list, max_length=256)
    top_m: float | None = Field(None, gt=0, le=1)
    pool_size: int | None = Field(None, ge=1, le=10_000)
    timeout: float | None = Field(None, gt=0, le=600)


class NeighborAnswer(Answer):
    """A row that a picture was painted after; `row` None: no row (the text itself, a picture that was given)."""

    row: int | None
    score: float | None
    key: str = ""
    caption: str = ""
    licence: str = ""
    fields: dict[str, str] = Field(default_factory=dict)
    thumbnail_url: str | None = None


class ImageAnswer(Answer):
    """One picture."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int
    neighbors: list[NeighborAnswer]
    record: dict[str, Any]


class GenerationAnswer(Answer):
    """All pictures of a request."""

    created: int
    data: list[ImageAnswer]
    model: str
    database: str | None
    version: str | None
    size: str
    output_format: Literal["png"] = "png"


class SearchBody(Body):
    """`POST /v1/databases/{database}/search`: by text, image, ready embedding or row, or by BM25."""

    text: str | None = Field(None, max_length=_TEXT)
    image: str | None = Field(None, max_length=_BASE64, description="base64, or a data: URI")
    bm25: str | None = Field(None, max_length=_TEXT)
    row: int | None = Field(None, ge=0, le=2**62)
    embedding: list[float] | None = Field(None, min_length=1, max_length=8192)
    k: int = Field(20, ge=1, le=1000)
    filters: Where = Field(default_factory=dict)
    without: list[Annotated[int, Field(ge=0, le=2**62)]] = Field(default_factory=list, max_length=256)
    version: str | None = Field(None, max_length=64)

    @model_validator(mode="after")
    def _one(self) -> "SearchBody":
        given = (self.text, self.image, self.bm25, self.row, self.embedding)
        if sum(own is not None for own in given) != 1:
            raise ValueError("give one of `text`, `image`, `bm25`, `row` and `embedding`")
        return self


class SearchAnswer(Answer):
    """Rows, best first."""

    database: str
    version: str
    rows: list[NeighborAnswer]


class DatabaseAnswer(Answer):
    """A database that a tenant may read."""

    id: str
    name: str
    shared: bool
    view_of: str | None = None
    where: dict[str, list[str]] = Field(default_factory=dict)
    version: str | None
    rows: int
    bytes: int
    columns: list[str] = Field(default_factory=list)
    bm25: bool = False
    encoder: str | None = None
    created_at: str | None = None


class DatabasesAnswer(Answer):
    """All that a tenant may read, the default one first."""

    data: list[DatabaseAnswer]


class VersionAnswer(Answer):
    """A finished version; `rows` and `bytes` are null where only a part of it may be seen."""

    id: str
    live: bool
    rows: int | None
    bytes: int | None
    created_at: str


class VersionsAnswer(Answer):
    """Oldest first."""

    data: list[VersionAnswer]


class PublishedAnswer(Answer):
    """What is live now."""

    database: str
    version: str


class JobAnswer(Answer):
    """A build."""

    id: str
    database: str
    kind: str
    state: Literal["queued", "running", "succeeded", "failed"]
    message: str
    stage: str
    done: int
    total: int | None
    per_second: float
    version: str | None
    created_at: str
    finished_at: str | None


class CreateDatabaseBody(Body):
    """`POST /v1/databases` as JSON: from a URI, or a view. Images come by multipart instead.

    Attributes:
        uri: a folder of images, allowed by the service's `uri_prefixes`.
        view_of, where: rows of a database that the tenant may read.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    uri: str | None = Field(None, max_length=1024)
    view_of: str | None = Field(None, max_length=64)
    where: Where = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one(self) -> "CreateDatabaseBody":
        if (self.uri is None) == (self.view_of is None):
            raise ValueError("give `uri` or `view_of`; images are sent by multipart/form-data")
        if self.where and self.view_of is None:
            raise ValueError("`where` is for `view_of`")
        return self


class DeleteRowsBody(Body):
    """`POST /v1/databases/{database}/rows/delete`."""

    ids: list[Annotated[int, Field(ge=0, le=2**62)]] = Field(min_length=1, max_length=100_000)


class RollbackBody(Body):
    """`POST /v1/databases/{database}/rollback`; `to` None: the version that was live before."""

    to: str | None = Field(None, max_length=64)


class KeyBody(Body):
    """`POST /v1/keys`."""

    label: str = Field("", max_length=64)
    scopes: list[Literal["read", "generate", "write", "admin"]] = Field(min_length=1, max_length=4)
    days: float | None = Field(None, gt=0, le=3650)


class KeyAnswer(Answer):
    """A key; `key` only when it is made."""

    id: str
    label: str = ""
    scopes: list[str]
    created_at: str | None = None
    expires_at: str | None = None
    revoked: bool = False
    key: str | None = None


class KeysAnswer(Answer):
    """Oldest first."""

    data: list[KeyAnswer]


class UsageAnswer(Answer):
    """What a tenant uses, and may use."""

    tenant: str
    rows: int
    bytes: int
    images_today: int
    limits: dict[str, int]


class AuditAnswer(Answer):
    """Newest first."""

    data: list[dict[str, Any]]


class ModelAnswer(Answer):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "remembrandt"
    kind: str
    size: str
    num_neighbors: int
    strategies: list[str]
    default_steps: int
    max_steps: int
    guidance: list[str]


class ModelsAnswer(Answer):
    """As OpenAI's `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class ErrorDetail(Answer):
    """As OpenAI's errors."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(Answer):
    """One clear sentence."""

    error: ErrorDetail


class KnnBody(Body):
    """`POST /knn-service` of clip-retrieval; what has no meaning here is taken and has no effect."""

    model_config = ConfigDict(extra="ignore")
    text: str | None = Field(None, max_length=_TEXT)
    image: str | None = Field(None, max_length=_BASE64)
    image_url: str | None = Field(None, max_length=2048)
    embedding_input: list[float] | None = Field(None, max_length=8192)
    modality: Literal["image", "text"] = "image"
    num_images: int = Field(20, ge=1, le=1000)
    num_result_ids: int | None = Field(None, ge=1, le=10_000)
    indice_name: str | None = Field(None, max_length=64)


class MetadataBody(Body):
    """`POST /metadata` of clip-retrieval."""

    model_config = ConfigDict(extra="ignore")
    ids: list[Annotated[int, Field(ge=0, le=2**62)]] = Field(max_length=10_000)
    indice_name: str | None = Field(None, max_length=64)
