"""What a user sets, what goes in, and what the manifest remembers."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import Field, SecretStr, model_validator

from remembrandt.configuration import Config

URL_VARIABLE = "ELASTICSEARCH_URL"


class Bm25Config(Config):
    """How captions become searchable.

    Attributes:
        backend: `embedded` puts the index into the database version; `elasticsearch` loads a cluster; `none` builds no
            text search.
        url: address of the cluster; default: the variable ELASTICSEARCH_URL.
        api_key, username, password: credentials, better given by ELASTICSEARCH_API_KEY, or ELASTICSEARCH_USERNAME and
            ELASTICSEARCH_PASSWORD. They are never written anywhere.
        ca_certs: file with the certificate authority of the cluster; default: ELASTICSEARCH_CA_CERTS, else the
            system's. `verify_certs: false` accepts any certificate.
        shards: primary shards of an index; `auto` follows `num_shards`.
        replicas: copies of each shard once the index is loaded; none while it is loading.
        refresh_interval: how often new documents become visible once the index is loaded.
        force_merge: merge each shard into one segment at the end: slower to finish, faster to search.
        bulk_documents, bulk_bytes: size of one bulk request, whichever is reached first.
        bulk_threads: bulk requests in flight from one loading task.
        search_threads: search requests in flight from one reader, and threads of the embedded backend; `auto` takes
            the processors that this process may use (embedded) or 4 (Elasticsearch).
        search_batch: queries in one `_msearch` request.
        request_seconds: time limit of one request.
        retry_seconds: how long a request is repeated while the cluster refuses (429), is down or unreachable.
    """

    backend: Literal["embedded", "elasticsearch", "none"] = "embedded"
    url: str | None = None
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    username: str | None = Field(default=None, exclude=True, repr=False)
    password: SecretStr | None = Field(default=None, exclude=True, repr=False)
    ca_certs: str | None = None
    verify_certs: bool = True
    shards: Literal["auto"] | int = Field(default="auto", union_mode="left_to_right")
    replicas: int = Field(default=1, ge=0)
    refresh_interval: str = "30s"
    force_merge: bool = False
    bulk_documents: int = Field(default=2000, ge=1)
    bulk_bytes: int = Field(default=8 << 20, ge=1 << 10)
    bulk_threads: int = Field(default=4, ge=1)
    search_threads: Literal["auto"] | int = Field(default="auto", union_mode="left_to_right")
    search_batch: int = Field(default=200, ge=1)
    request_seconds: float = Field(default=120.0, gt=0)
    retry_seconds: float = Field(default=120.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _credentials_leave_the_url(cls, values: Any) -> Any:
        """`https://user:secret@host` becomes a plain URL and credentials, so that no message shows the secret."""
        if not isinstance(values, dict) or not isinstance(values.get("url"), str) or "@" not in values["url"]:
            return values
        url, username, password = split_credentials(values["url"])
        found = {"username": username, "password": password}
        return {**values, "url": url, **{key: value for key, value in found.items() if value and not values.get(key)}}

    @model_validator(mode="after")
    def _numbers_are_positive(self) -> "Bm25Config":
        for name in ("shards", "search_threads"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ValueError(f"{name} must be 'auto' or at least 1")
        return self

    def resolved_url(self) -> str | None:
        """The configured address, else the environment's; credentials inside it are left out."""
        url = self.url or os.environ.get(URL_VARIABLE)
        return split_credentials(url)[0] if url else None


def split_credentials(url: str) -> tuple[str, str | None, str | None]:
    """The URL without its user part, the user's name and the password."""
    parts = urlsplit(url)
    user, separator, host = parts.netloc.rpartition("@")
    if not separator:
        return url, None, None
    name, _, password = user.partition(":")
    return urlunsplit(parts._replace(netloc=host)), unquote(name) or None, unquote(password) or None


@dataclass(frozen=True)
class Bm25Document:
    """One row as BM25 sees it.

    Attributes:
        id: row id; strictly ascending in a stream of documents.
        text: what is searched.
        key, group, licence, fields: what filters name; never searched.
    """

    id: int
    text: str
    key: str = ""
    group: str = ""
    licence: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bm25Info:
    """What the manifest says about a finished BM25 index; holds no address and no credentials.

    Attributes:
        backend: `embedded` or `elasticsearch`.
        analyzer: name of the analysis, the same for both backends.
        k1, b: parameters of the score.
        documents: number of rows indexed, those without text included.
        index, alias: names in Elasticsearch; None for the embedded backend.
        fields: names of the source's own columns that filters may name.
        settings: what shaped the index (shards, replicas), for the record.
    """

    backend: str
    analyzer: str
    k1: float
    b: float
    documents: int
    index: str | None = None
    alias: str | None = None
    fields: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
