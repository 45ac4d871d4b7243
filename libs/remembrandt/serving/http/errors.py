"""Every failure as OpenAI's errors are: one clear sentence, and nothing of ours."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from remembrandt.data.decode import DecodeError
from remembrandt.errors import (
    CorruptionError,
    RemembrandtError,
    ServiceError,
    StorageError,
    VersionError,
)
from remembrandt.serving.errors import (
    ConflictError,
    DeadlineError,
    NotFoundError,
    TooLargeError,
    TooManyRequestsError,
)
from remembrandt.serving.http.services import NotAllowedError
from remembrandt.serving.types import ErrorAnswer, ErrorDetail

log = logging.getLogger("remembrandt.requests")
_STATUS: tuple[tuple[type[RemembrandtError], int], ...] = (
    (NotFoundError, 404),
    (VersionError, 404),
    (ConflictError, 409),
    (TooLargeError, 413),
    (TooManyRequestsError, 429),
    (DeadlineError, 504),
    (ServiceError, 503),
    (StorageError, 503),
    (CorruptionError, 503),
)
# What these say names our storage; the log has it whole.
_OURS = (ServiceError, StorageError, CorruptionError)


def add_error_handlers(app: FastAPI) -> None:
    """Makes every failure of a route an `ErrorAnswer`."""
    app.add_exception_handler(RemembrandtError, _remembrandt)
    app.add_exception_handler(DecodeError, _decode)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def answer_of(error: BaseException) -> tuple[int, ErrorAnswer, dict[str, str]]:
    """Status, body and headers of a failure."""
    if isinstance(error, NotAllowedError):
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
        return error.status, _error(str(error), "authentication_error"), headers
    if isinstance(error, TooManyRequestsError):
        return 429, _error(str(error), "rate_limit_error"), {"retry-after": str(error.retry_after)}
    if isinstance(error, VersionError):
        return 404, _error("this database has no such version, or none is published yet", "not_found_error"), {}
    if isinstance(error, RemembrandtError):
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 400)
        if isinstance(error, _OURS):
            log.error("%s", error, exc_info=error.__cause__)
            return status, _error("the service cannot answer now: try again soon", "server_error"), {"retry-after": "2"}
        return status, _error(" ".join(str(error).split()), "invalid_request_error"), {}
    if isinstance(error, DecodeError):
        return 400, _error(f"the image is not accepted: {error}", "invalid_request_error"), {}
    log.error("unexpected", exc_info=error)
    return 500, _error("something is wrong here: give x-request-id to whoever runs this service", "server_error"), {}


def _error(message: str, kind: str, param: str | None = None) -> ErrorAnswer:
    plain = message.encode(errors="replace").decode()  # a message may cite names of files that are no UTF-8
    return ErrorAnswer(error=ErrorDetail(message=plain, type=kind, param=param))


def _response(error: BaseException) -> JSONResponse:
    status, body, headers = answer_of(error)
    return JSONResponse(body.model_dump(), status, headers)


async def _remembrandt(request: Request, error: Exception) -> JSONResponse:
    return _response(error)


async def _decode(request: Request, error: Exception) -> JSONResponse:
    return _response(error)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return _response(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    message = str(first["msg"]).removeprefix("Value error, ")
    return JSONResponse(
        _error(f"{where}: {message}" if where else message, "invalid_request_error", where or None).model_dump(), 422
    )


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    return JSONResponse(_error(str(error.detail), kind).model_dump(), error.status_code, error.headers)
