"""Around every request: an id, a limit of its body, a line in the log, and its time."""

import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remembrandt.serving.metrics import request_done
from remembrandt.serving.telemetry import RequestParts, request_span

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
log = logging.getLogger("remembrandt.requests")


class BodyTooLargeError(HTTPException):
    """A body is longer than is accepted."""

    def __init__(self) -> None:
        super().__init__(413, "the request is too large: send less at once")


class RequestScope:
    """Gives each request an id, measures it and writes one structured line of it."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app, self._max_body = app, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        parts = RequestParts()
        state["request_id"], state["parts"] = request_id, parts
        start, status, received = time.perf_counter(), 500, 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max_body:
                    raise BodyTooLargeError
            return message

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = MutableHeaders(scope=message)
                own["x-request-id"] = request_id
                own["server-timing"] = parts.server_timing(time.perf_counter() - start)
                own.setdefault("x-content-type-options", "nosniff")
                own.setdefault("referrer-policy", "no-referrer")
            await send(message)

        try:
            with request_span(scope["method"], scope["path"], headers, request_id):
                await self._app(scope, limited, answered)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "unknown")
            tenant = str(state.get("tenant", ""))
            request_done(route, status, tenant, seconds)
            log.info(
                "request",
                extra={
                    "request": {
                        "request_id": request_id,
                        "method": scope["method"],
                        "route": route,
                        "status": status,
                        "seconds": round(seconds, 4),
                        "parts": {name: round(part, 4) for name, part in parts.seconds.items()},
                        "tenant": tenant,
                        "bytes_in": received,
                    }
                },
            )


class JsonLines(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter.format`."""
        extra: Mapping[str, Any] = getattr(record, "request", {})
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "message": record.getMessage(),
            **extra,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_as(log_format: str) -> None:
    """Sends this package's request log to stderr, as JSON or as text."""
    if log.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else logging.Formatter("%(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
