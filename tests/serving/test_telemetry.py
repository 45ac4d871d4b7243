"""Traces reach the configured endpoint, as part of the client's own trace."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PROGRAM = """
import sys
from opentelemetry import trace
from remembrandt.serving.config import TelemetryConfig
from remembrandt.serving.telemetry import RequestParts, request_span, trace_to

trace_to(TelemetryConfig(otlp_endpoint=sys.argv[1]), "ingress")
with request_span("POST", "/v1/images/generations", {"traceparent": sys.argv[2]}, "abc"):
    with RequestParts().part("sample", model="rdm"):
        pass
trace.get_tracer_provider().shutdown()
"""


@pytest.fixture
def collector() -> Any:
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
    server.shutdown()


def test_a_request_and_its_parts_are_spans_of_the_clients_trace(collector: Any) -> None:
    endpoint, received = collector
    parent = f"00-{TRACE}-00f067aa0ba902b7-01"
    subprocess.run([sys.executable, "-c", PROGRAM, endpoint, parent], check=True, timeout=120)
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans = {
        own.name: own
        for body in received
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for own in scope.spans
    }
    assert set(spans) == {"POST v1", "sample"}
    assert {own.trace_id.hex() for own in spans.values()} == {TRACE}
    assert spans["sample"].parent_span_id == spans["POST v1"].span_id
    known = {value.key: value.value.string_value for value in spans["POST v1"].attributes}
    assert known["request.id"] == "abc" and known["url.path"] == "/v1/images/generations"
