"""One shape for every error that leaves the gateway: what the ``openai`` client expects.

``{"error": {"message", "type", "param", "code"}}``. Status, type and headers follow from the exception class,
so that no endpoint builds an error by hand.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from adapter_store.errors import (
    AliasCorrupt,
    BaseModelError,
    ConflictError,
    DatasetError,
    DatasetsBusy,
    EngineBusy,
    FencedOut,
    InputError,
    NotFoundError,
    ProbeFailed,
    QueueUnavailable,
    StateError,
    StoreError,
    StrataError,
    UnavailableError,
    VersionCorrupt,
)
from server.logs import log

_STATUS: tuple[tuple[type[StrataError], int], ...] = (
    (InputError, 400),
    (NotFoundError, 404),
    (ConflictError, 409),
    (EngineBusy, 429),
    (DatasetsBusy, 429),
    (UnavailableError, 503),
    (BaseModelError, 503),
    (StateError, 409),
    (ProbeFailed, 409),
    (VersionCorrupt, 409),
    (FencedOut, 409),
    (StoreError, 503),
)
_INSIDE: tuple[tuple[type[StrataError], str], ...] = (
    (QueueUnavailable, "the job queue cannot be used now; try again later"),
    (BaseModelError, "the base cannot be served; the server's log says why"),
    (StoreError, "the version store cannot be used now; try again later"),
)
"""What HTTP says instead of messages that name places on the server; those go to the log."""
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "wrong_scope",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_timeout",
    409: "conflict",
    413: "body_too_large",
    415: "unsupported_media_type",
    429: "engine_busy",
    499: "client_closed_request",
    503: "unavailable",
}
_MAX_FAULTS_SHOWN = 20
_RETRY_AFTER_SECONDS = 5
SEND_JSON = "send a JSON object as the body, with Content-Type: application/json"
_UNPARSED = "There was an error parsing the body"
"""What FastAPI says of a body that its parser gave up on, such as one that is nested too deeply."""


class AuthenticationError(StrataError):
    """Refuse a missing or wrong key (401), or one without the needed scope (403), or a foreign page (403)."""

    def __init__(self, message: str, *, status: int, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or _CODES[status]


class BodyTooLarge(HTTPException):
    """Stop reading a body at its limit (413); an HTTPException so that body parsers let it pass."""

    def __init__(self, limit_bytes: int, *, is_upload: bool) -> None:
        advice = "split the data set" if is_upload else "send less, or data sets as a file"
        text = f"the body is larger than the {limit_bytes} bytes accepted here"
        super().__init__(413, f"{text}; {advice}")


class BodyTooSlow(HTTPException):
    """Stop waiting for a body that does not come (408)."""

    def __init__(self) -> None:
        super().__init__(408, "the body arrives too slowly; send it again without pauses")


class TooManyBodies(HTTPException):
    """Refuse a body for which there is no room beside those of other requests (429)."""

    code = "too_many_bodies"

    def __init__(self) -> None:
        super().__init__(429, "other requests fill the memory kept for bodies; try again in a moment")


def error_body(
    message: str, *, status: int, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """Return the JSON body of an error."""
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": param,
            "code": code or _CODES.get(status, "error"),
        }
    }


def not_json(error: json.JSONDecodeError) -> str:
    """Return where a text stops being JSON, and what was expected there."""
    return f"is not JSON at line {error.lineno}, column {error.colno}: {error.msg}"


def error_headers(status: int, retry_after_seconds: float = _RETRY_AFTER_SECONDS) -> dict[str, str]:
    """Return the headers that tell clients whether to try again."""
    if status == 409:
        return {"x-should-retry": "false"}
    if status in (429, 503):
        return {"retry-after": str(max(1, round(retry_after_seconds)))}
    if status == 401:
        return {"www-authenticate": "Bearer"}
    return {}


def status_of(error: StrataError) -> int:
    """Return the HTTP status of an error of the project; unlisted classes are 500."""
    if isinstance(error, AuthenticationError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def describe(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return status, body and headers for any exception; unknown ones say nothing about the inside."""
    if isinstance(error, StrataError):
        status = status_of(error)
        if status != 500:
            message = _outside(error) if status == 503 else error.message
            body = error_body(message, status=status, code=error.code, param=error.param)
            if isinstance(error, DatasetError):
                body["error"]["report"] = error.report.to_dict()
            retry = error.retry_after_seconds if isinstance(error, UnavailableError) else _RETRY_AFTER_SECONDS
            return status, body, error_headers(status, retry)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        text = "the disk of the server is full; free some space and send the request again"
        return 503, error_body(text, status=503, code="disk_full"), error_headers(503, 60)
    text = "the server failed on this request; its log has the details under the x-request-id of this answer"
    return 500, error_body(text, status=500, code="internal_error"), {}


def _outside(error: StrataError) -> str:
    if isinstance(error, AliasCorrupt):  # it names a file by its place in the store, and what to do with it
        return error.message
    return next((text for kind, text in _INSIDE if isinstance(error, kind)), error.message)


def response_for(error: Exception) -> JSONResponse:
    """Return the response for any exception, and log what is not the caller's fault."""
    status, body, headers = describe(error)
    if status == 500:
        log("request failed", logging.ERROR, error=error)
    elif isinstance(error, StrataError) and status == 503 and _outside(error) != error.message:
        log("a part is not available", logging.WARNING, code=error.code, reason=error.message[:500])
    return JSONResponse(body, status, headers)


def install_handlers(app: FastAPI) -> None:
    """Make ``app`` answer every kind of error in the one shape."""
    app.add_exception_handler(StrataError, _on_strata_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_strata_error(_: Request, error: Exception) -> JSONResponse:
    return response_for(error)


async def _on_validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = [_fault(item, error.body) for item in error.errors()]
    shown = "; ".join(text for _, text in faults[:_MAX_FAULTS_SHOWN])
    more = len(faults) - _MAX_FAULTS_SHOWN
    message = shown + (f"; and {more} more" if more > 0 else "")
    param = faults[0][0] if faults else None
    return JSONResponse(error_body(message or "the request cannot be read", status=400, param=param), 400)


def _fault(item: Mapping[str, Any], body: Any) -> tuple[str | None, str]:
    """Return the field's path and a sentence; the rejected value itself is never repeated."""
    place = item.get("loc", ())
    if item.get("type") == "json_invalid":
        broken = json.JSONDecodeError(item["ctx"]["error"], body, place[-1])
        return None, f"the body {not_json(broken)}"
    if tuple(place) == ("body",):
        return None, SEND_JSON
    places = [str(part) for part in item.get("loc", ()) if part not in ("body", "query", "path", "header")]
    places = [part for part in places if not part.startswith("as-")]
    path = ".".join(places)[:120]
    text = str(item.get("msg", "is not valid")).removeprefix("Value error, ")
    return (path or None), f"{path}: {text}" if path else text


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = 400 if error.status_code == 422 else error.status_code
    message = str(error.detail)
    if status == 400 and message == _UNPARSED:
        message = f"the body is JSON that is nested too deeply, or none; {SEND_JSON}"
    if status == 404 and message == "Not Found":
        message = (
            f"there is no {request.method} {request.url.path[:120]!r}; the list of endpoints is at /docs"
        )
    elif status == 405:
        message = f"{request.method} is not possible here; the list of endpoints is at /docs"
    headers = {**error_headers(status), **(error.headers or {})}
    body = error_body(message, status=status, code=getattr(error, "code", None))
    return JSONResponse(body, status, headers)
