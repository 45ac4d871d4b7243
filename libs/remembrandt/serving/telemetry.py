"""Where the time of a request goes: told to its client, and traced by OpenTelemetry where an endpoint is configured."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import propagate, trace

from remembrandt.errors import ConfigError
from remembrandt.serving.config import TelemetryConfig

_tracer = trace.get_tracer("remembrandt")


def trace_to(config: TelemetryConfig, service: str) -> None:
    """Sends this process's spans to the configured endpoint.

    Raises:
        ConfigError: one is configured, and the exporter is not installed.
    """
    if config.otlp_endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        raise ConfigError(
            "telemetry.otlp_endpoint needs opentelemetry-exporter-otlp-proto-http: install remembrandt[telemetry]"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": f"remembrandt-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(config.otlp_endpoint)))
    trace.set_tracer_provider(provider)


@contextmanager
def request_span(method: str, path: str, headers: Mapping[str, str], request_id: str) -> Iterator[None]:
    """A request, as part of the client's trace if it says so by `traceparent`."""
    context = propagate.extract(dict(headers))
    with _tracer.start_as_current_span(
        f"{method} {path.split('/')[1] if '/' in path else path}",
        context=context,
        kind=trace.SpanKind.SERVER,
        attributes={"http.request.method": method, "url.path": path, "request.id": request_id},
    ):
        yield


class RequestParts:
    """The parts of one request, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str, **attributes: Any) -> Iterator[None]:
        """A part, which is timed and traced."""
        start = time.perf_counter()
        with _span(name, **attributes):
            yield
        self.seconds[name] = time.perf_counter() - start

    def server_timing(self, total_seconds: float) -> str:
        """As W3C's header `Server-Timing`: milliseconds of each part, and of all that has been done."""
        timed = {**self.seconds, "total": total_seconds}
        return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in timed.items())


@contextmanager
def _span(name: str, **attributes: Any) -> Iterator[None]:
    """A part of a request. It is not made the current one: a stream may end in another task than it began in."""
    part = _tracer.start_span(name, attributes=attributes)
    try:
        yield
    except BaseException as error:
        part.record_exception(error)
        raise
    finally:
        part.end()
