"""Connection to an Elasticsearch cluster: credentials, TLS, patience, and errors in one line each."""

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from elastic_transport import ConnectionError as TransportConnectionError
from elastic_transport import ConnectionTimeout, HttpHeaders, TlsError, TransportError, Urllib3HttpNode
from elastic_transport.client_utils import DEFAULT, DefaultType
from elasticsearch import ApiError, Elasticsearch
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from remembrandt.databases.bm25.config import URL_VARIABLE, Bm25Config, split_credentials
from remembrandt.errors import ConfigError, ServiceError
from remembrandt.progress import say

BUSY = frozenset({429, 502, 503, 504})
"""Answers after which the same request may succeed later."""

_FIRST_CONTACT_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 10.0

ResultT = TypeVar("ResultT")


class BusyError(Exception):
    """A request that was refused in whole or in part, and may be repeated."""


class Cluster:
    """A client, and the address by which messages name it."""

    def __init__(self, config: Bm25Config, connections: int = 4) -> None:
        url = config.resolved_url()
        if not url:
            raise ConfigError(f"no address of Elasticsearch: set bm25.url or {URL_VARIABLE}, or bm25.backend: embedded")
        self.url = url
        self._config = config
        try:
            self.client = Elasticsearch(
                url,
                **_credentials(config),
                **_tls(config, url),
                node_class=_CompatibleNode,
                connections_per_node=connections,
                request_timeout=config.request_seconds,
                retry_on_timeout=False,
                max_retries=0,
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(f"Elasticsearch at {url} cannot be addressed: {_one_line(error)}") from None

    def ping(self) -> None:
        """Returns if the cluster answers within a few seconds.

        Raises:
            ServiceError: it does not, or refuses the credentials.
        """
        self.call("answering", self.client.info, seconds=min(_FIRST_CONTACT_SECONDS, self._config.retry_seconds))

    def call(self, doing: str, request: Callable[[], ResultT], seconds: float | None = None) -> ResultT:
        """The request's result; repeated with growing pauses while the cluster is busy, down or unreachable.

        Args:
            doing: what the request does, as part of an error message: "creating index x".
            seconds: how long to go on; default: the configuration's `retry_seconds`.

        Raises:
            ServiceError: it still fails, or fails for good.
        """
        patience = self._config.retry_seconds if seconds is None else seconds
        retrying = Retrying(
            retry=retry_if_exception(_is_temporary),
            wait=wait_random_exponential(multiplier=0.2, max=_LONGEST_PAUSE_SECONDS),
            stop=stop_after_delay(patience),
            before_sleep=self._announce,
            reraise=True,
        )
        try:
            return retrying(request)
        except (ApiError, TransportError, BusyError) as error:
            raise self.explain(error, doing, patience) from None

    def explain(self, error: Exception, doing: str, patience: float) -> ServiceError:
        """One line for the person who runs the build or the search."""
        where = f"Elasticsearch at {self.url}"
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            remedy = "set ELASTICSEARCH_API_KEY, or ELASTICSEARCH_USERNAME and ELASTICSEARCH_PASSWORD"
            return ServiceError(f"{where} refuses the credentials ({status}) when {doing}: {remedy}")
        if isinstance(error, TlsError):
            return ServiceError(
                f"{where} has a certificate that is not trusted here: set bm25.ca_certs to its authority's file"
            )
        if isinstance(error, ConnectionTimeout):
            return ServiceError(
                f"{where} gave no answer in time when {doing}: raise bm25.request_seconds, or run again to go on"
            )
        if isinstance(error, TransportConnectionError):
            return ServiceError(
                f"{where} is not reachable (tried for {patience:.0f} s): start it, and run again to go on"
            )
        if isinstance(error, BusyError) or status in BUSY:
            reason = f"was too busy for {patience:.0f} s when {doing} ({_one_line(error)})"
            return ServiceError(f"{where} {reason}: lower bm25.bulk_threads, or run again to go on")
        return ServiceError(f"{where} failed when {doing}: {_one_line(error)}")

    def close(self) -> None:
        """Closes all connections."""
        self.client.close()

    def _announce(self, state: RetryCallState) -> None:
        """Says once per request that it waits: the second attempt already tells that the first was not enough."""
        if state.attempt_number == 3 and state.outcome is not None:
            reason = _one_line(state.outcome.exception())
            say(f"bm25: Elasticsearch at {self.url} does not keep up or answer ({reason}); trying on")


class _CompatibleNode(Urllib3HttpNode):
    """Asks for version 8 of the REST interface, which clusters of version 8 and 9 both speak."""

    def perform_request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: HttpHeaders | None = None,
        request_timeout: DefaultType | float | None = DEFAULT,
    ) -> Any:
        if headers is not None:
            headers = HttpHeaders({k: v.replace("compatible-with=9", "compatible-with=8") for k, v in headers.items()})
        return super().perform_request(method, target, body, headers, request_timeout)


def _is_temporary(error: BaseException) -> bool:
    if isinstance(error, TlsError):
        return False
    if isinstance(error, BusyError | TransportConnectionError | ConnectionTimeout):
        return True
    return isinstance(error, ApiError) and error.status_code in BUSY


def _credentials(config: Bm25Config) -> dict[str, Any]:
    """The configuration's, else the environment's, else those inside ELASTICSEARCH_URL."""
    found = os.environ
    _, url_user, url_password = split_credentials(found.get(URL_VARIABLE, ""))
    api_key = config.api_key.get_secret_value() if config.api_key else found.get("ELASTICSEARCH_API_KEY")
    username = config.username or found.get("ELASTICSEARCH_USERNAME") or url_user
    password = found.get("ELASTICSEARCH_PASSWORD", url_password)
    if config.password:
        password = config.password.get_secret_value()
    if api_key and config.username is None:
        return {"api_key": api_key}
    return {"basic_auth": (username, password or "")} if username else {}


def _tls(config: Bm25Config, url: str) -> dict[str, Any]:
    if not url.startswith("https"):
        return {}
    authority = config.ca_certs or os.environ.get("ELASTICSEARCH_CA_CERTS")
    if not config.verify_certs:
        return {"verify_certs": False, "ssl_show_warn": False}
    if authority and not os.path.exists(authority):
        raise ConfigError(f"bm25.ca_certs: {authority} does not exist")
    return {"ca_certs": authority} if authority else {}


def _one_line(error: BaseException | None) -> str:
    """The reason without addresses, bodies or stack traces, at most 300 characters."""
    reason: Any = str(error)
    if isinstance(error, ApiError):
        cause = error.body.get("error") if isinstance(error.body, Mapping) else None
        reason = cause.get("reason") if isinstance(cause, Mapping) else None
        reason = reason or f"{error.status_code} {error.message}"
    elif isinstance(error, TransportError):
        reason = error.message
    return " ".join(str(reason).split())[:300]
