"""What a service is told: the `args` of its entry in a Serve configuration file."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from remembrandt.configuration import Config, parse_config
from remembrandt.data.decode import DecodeConfig
from remembrandt.encoders import EncoderConfig
from remembrandt.errors import ConfigError
from remembrandt.serving.accounts import Limits

ACCOUNTS = "REMEMBRANDT_ACCOUNTS"
_VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
Name = Annotated[str, Field(pattern=_NAME)]


class ReplicasConfig(Config):
    """How many replicas a deployment has, and what each may hold.

    Attributes:
        min, max: replicas; between them Serve follows the number of requests.
        target_ongoing: requests a replica that more are started above.
        max_ongoing: requests that one replica works on or keeps waiting.
        max_queued: requests that one client of the deployment keeps waiting; beyond it: 429.
        num_cpus, num_gpus, memory: what Ray reserves for each.
    """

    min: int = Field(1, ge=0)
    max: int = Field(1, ge=1)
    target_ongoing: float = Field(8, gt=0)
    max_ongoing: int = Field(64, ge=1)
    max_queued: int = Field(64, ge=0)
    num_cpus: float = Field(0.5, ge=0)
    num_gpus: float = Field(0, ge=0)
    memory: int | None = Field(None, ge=1)
    resources: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ordered(self) -> "ReplicasConfig":
        if self.min > self.max:
            raise ValueError(f"min {self.min} must not exceed max {self.max}")
        return self

    def options(self, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Of a Serve deployment, whose replicas start with that environment."""
        actor = {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "memory": self.memory,
            "resources": self.resources or None,
            "runtime_env": {"env_vars": dict(environment)} if environment else None,
        }
        scaled = {"min_replicas": self.min, "max_replicas": self.max, "target_ongoing_requests": self.target_ongoing}
        return {
            "ray_actor_options": {name: value for name, value in actor.items() if value is not None},
            "max_ongoing_requests": self.max_ongoing,
            "max_queued_requests": self.max_queued,
            **({"num_replicas": self.min} if self.min == self.max else {"autoscaling_config": scaled}),
        }


class ModelConfig(Config):
    """A model that is served.

    Attributes:
        model: folder of a finished model, or the name of a shipped one.
        steps: network evaluations of each stage, where a request says nothing.
        max_steps: that a request may ask for.
        max_batch: pictures that are drawn together.
        batch_wait_seconds: how long an idle sampler waits for more of them: worth it on a GPU, where one picture
            takes as long as many.
        precision, compile, threads: of the network.
        replicas: of its sampler; None: each ingress draws in its own process, which answers sooner where one machine
            does everything. One such model may have several threads.
    """

    kind: Literal["rdm", "reimagen"]
    model: str
    steps: int = Field(25, ge=1)
    max_steps: int = Field(256, ge=1)
    max_batch: int = Field(32, ge=1)
    batch_wait_seconds: float = Field(0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    threads: int = Field(1, ge=1)
    replicas: ReplicasConfig | None = ReplicasConfig()

    @model_validator(mode="after")
    def _own_steps_are_allowed(self) -> "ModelConfig":
        if self.steps > self.max_steps:
            raise ValueError(f"steps {self.steps} must not exceed max_steps {self.max_steps}")
        return self


class SharedConfig(Config):
    """A database that every tenant may read.

    Attributes:
        where: only such rows of it.
    """

    uri: str
    where: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class UploadConfig(Config):
    """What is accepted from clients.

    Attributes:
        max_request_bytes: of one request's body.
        max_image_bytes, decode: of one image.
        max_images: of one request, archives unpacked.
        max_pixels: of all images of one request together: a picture of one colour is small until it is decoded.
        max_unpacked_bytes: of one archive.
        threads: that look at uploads and fetch URLs, and as many that look at single pictures of searches.
        max_concurrent: uploads and fetches of one tenant that an ingress replica works on at once; beyond it: 429.
        uri_prefixes: storage that databases may be built from by URI; none: no URIs.
        fetch_urls: whether image URLs are fetched, from public addresses only.
        fetch_timeout_seconds: of one URL, with all that it redirects to.
    """

    max_request_bytes: int = Field(200_000_000, ge=1)
    max_image_bytes: int = Field(20_000_000, ge=1)
    max_images: int = Field(10_000, ge=1)
    max_pixels: int = Field(10_000_000_000, ge=1)
    max_unpacked_bytes: int = Field(2_000_000_000, ge=1)
    threads: int = Field(4, ge=1)
    max_concurrent: int = Field(2, ge=1)
    decode: DecodeConfig = DecodeConfig(max_pixels=25_000_000, formats=("JPEG", "PNG", "WEBP", "GIF", "BMP"))
    uri_prefixes: tuple[str, ...] = ()
    fetch_urls: bool = False
    fetch_timeout_seconds: float = Field(10.0, gt=0)


class ProvenanceConfig(Config):
    """Content credentials (C2PA) inside each picture, where a certificate is at hand.

    Attributes:
        certificate, private_key: PEM files.
        algorithm: of the key.
    """

    certificate: str
    private_key: str
    algorithm: Literal["es256", "es384", "ps256", "ed25519"] = "es256"


class TelemetryConfig(Config):
    """Traces and logs.

    Attributes:
        otlp_endpoint: where OpenTelemetry traces go; None: nowhere.
        log_format: `json`, a line of JSON a request.
    """

    otlp_endpoint: str | None = None
    log_format: Literal["json", "text"] = "json"


class ServiceConfig(Config):
    """One service.

    Attributes:
        accounts: URL of tenants and keys; None: what REMEMBRANDT_ACCOUNTS says.
        storage: path or URI below which tenants' databases, uploads and pictures lie.
        models: name → what is served by it; the first one is the default.
        shared: name → database that every tenant may read; the first one is the default.
        public_url: as clients reach it, `https://…`, put in front of URLs in answers; None: these are relative.
        database_cache_bytes: of database versions that one retrieval replica keeps open.
        encoder: of tenants' databases: that of the served models.
        build_cpus: what a build of a tenant's database may use.
        image_days: how long pictures stay at their URLs.
        deadline_seconds: of a request, if it names none.
        max_images: of one request (n).
        default_limits: of tenants made through the API.
        retrieval: its replicas; None: each ingress retrieves in its own process, which is quicker for what one machine
            holds.
        retrieval_threads: of a process that retrieves.
    """

    accounts: str | None = None
    storage: str
    models: dict[Name, ModelConfig] = Field(min_length=1)
    shared: dict[Name, str | SharedConfig] = Field(default_factory=dict)
    public_url: str | None = Field(None, pattern=r"^https?://")
    database_cache_bytes: int = Field(4_000_000_000, ge=0)
    encoder: EncoderConfig = EncoderConfig()
    build_cpus: float = Field(1.0, gt=0)
    image_days: float = Field(1.0, gt=0)
    deadline_seconds: float = Field(120.0, gt=0)
    max_images: int = Field(16, ge=1)
    default_limits: Limits = Limits()
    uploads: UploadConfig = UploadConfig()
    provenance: ProvenanceConfig | None = None
    telemetry: TelemetryConfig = TelemetryConfig()
    ingress: ReplicasConfig = ReplicasConfig(max_ongoing=256, max_queued=256)
    retrieval: ReplicasConfig | None = ReplicasConfig()
    retrieval_threads: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _one_team(self) -> "ServiceConfig":
        teams = [name for name, model in self.drawn_within.items() if model.threads > 1]
        if len(teams) > 1:
            raise ValueError(
                f"models {', '.join(teams)} would each draw with several threads within the ingress, and wait for each "
                "other: give all but one of them replicas, or threads: 1"
            )
        return self

    @property
    def accounts_url(self) -> str:
        """Where the accounts are.

        Raises:
            ConfigError: nothing says so.
        """
        url = self.accounts or os.environ.get(ACCOUNTS)
        if not url:
            raise ConfigError(f"name the accounts (sqlite:///<path> or postgresql+psycopg://…), or set {ACCOUNTS}")
        return url

    @property
    def shared_databases(self) -> dict[str, SharedConfig]:
        """By name."""
        return {name: SharedConfig(uri=own) if isinstance(own, str) else own for name, own in self.shared.items()}

    @property
    def drawn_within(self) -> dict[str, ModelConfig]:
        """Models that each ingress draws with in its own process."""
        return {name: model for name, model in self.models.items() if model.replicas is None}

    @property
    def default_model(self) -> str:
        """The first one."""
        return next(iter(self.models))


def parse_service(args: dict[str, Any]) -> ServiceConfig:
    """The `args` of a Serve configuration; `${NAME}` in a text is an environment variable.

    Raises:
        ConfigError: unknown or impossible settings, by name; a variable that is not set.
    """
    return parse_config(ServiceConfig, _expanded(args), "service args")


def _expanded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_expanded(own) for own in value]
    return _VARIABLE.sub(_variable, value) if isinstance(value, str) else value


def _variable(found: re.Match[str]) -> str:
    if (value := os.environ.get(found[1])) is None:
        raise ConfigError(f"service args: ${{{found[1]}}} is not set in the environment of the cluster")
    return value
