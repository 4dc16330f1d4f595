"""What surrounds every request: its id, its log line and metrics, the limits of its body, the last resort."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapter_store.errors import UnavailableError
from server.errors import (
    BodyTooLarge,
    BodyTooSlow,
    TooManyBodies,
    error_body,
    error_headers,
    response_for,
)
from server.logs import log
from server.metrics import Metrics

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUIET = frozenset({"/health", "/ready", "/metrics"})
_UPLOAD_PREFIXES = ("/v1/files", "/v1/tasks/", "/v1/datasets")
_MIN_BYTES_PER_SECOND = 8192


class RequestFrame:
    """Give every request an id, measure and log it, and turn what nobody caught into a plain 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request inside its frame."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        started = time.perf_counter()

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except asyncio.CancelledError:  # only a stop cancels requests; what could be ended in words has been
            log("the server stopped before the request was answered", logging.WARNING, request_id=request_id)
            if status == 0:
                stopping = UnavailableError("the server is stopping; send the request again")
                await response_for(stopping)(scope, receive, send_marked)
        except ClientDisconnect:
            log("the client went away before its body was complete", request_id=request_id)
        except Exception as error:  # noqa: BLE001  the last resort: nothing may escape to the client
            log("unhandled error", logging.ERROR, error=error, request_id=request_id)
            if status == 0:
                await response_for(error)(scope, receive, send_marked)
        finally:
            self._note(scope, request_id, status or 499, time.perf_counter() - started)

    def _note(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = route_template(scope)
        self._metrics.observe_http(route, scope["method"], status, seconds)
        level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
        log(
            "request",
            level,
            request_id=request_id,
            method=scope["method"],
            route=route,
            status=status,
            seconds=round(seconds, 4),
        )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    return f"req-{uuid.uuid4().hex}"


def route_template(scope: Scope) -> str:
    """Return the matched route's path template: a bounded label, never the path a client chose."""
    return getattr(scope.get("route"), "path", None) or "unmatched"


class BodyGuard:
    """Bound a body's size and slowness while it streams in, whatever Content-Length says.

    Bodies that are read into memory stay there until their requests are answered, so all together are bounded
    too; uploads go to disk as they come and do not count.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_request_bytes: int,
        max_upload_bytes: int,
        max_held_bytes: int,
        pause_seconds: float,
    ) -> None:
        self._app = app
        self._max_request_bytes = max_request_bytes
        self._max_upload_bytes = max_upload_bytes
        self._max_held_bytes = max(max_held_bytes, max_request_bytes)
        self._pause_seconds = pause_seconds
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a guarded ``receive``."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {
            name: value for name, value in scope["headers"] if name in (b"content-length", b"content-type")
        }
        is_upload = _is_upload(scope["path"], headers.get(b"content-type", b""))
        body = _Body(self._limit(is_upload), is_upload, self._pause_seconds)
        if _is_ambiguous(scope):
            text = "the request has both Content-Length and Transfer-Encoding; send one of them"
            await self._refuse(HTTPException(400, text), scope, receive, send)
            return
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > body.limit:
            await self._refuse(BodyTooLarge(body.limit, is_upload=is_upload), scope, receive, send)
            return
        started = False

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        async def guarded() -> Message:
            message = await body.next(receive)
            if not is_upload:
                self._hold(body, len(message.get("body", b"")))
            return message

        try:
            await self._app(scope, guarded, send_noted)
        except (BodyTooLarge, BodyTooSlow, TooManyBodies) as error:
            if not started:
                await self._refuse(error, scope, receive, send)
        finally:
            self._held_bytes -= body.held

    def _limit(self, is_upload: bool) -> int:
        return self._max_upload_bytes if is_upload else self._max_request_bytes

    def _hold(self, body: _Body, more: int) -> None:
        """Count what a request keeps in memory; raise TooManyBodies if there is no room for it."""
        if self._held_bytes + more > self._max_held_bytes:
            raise TooManyBodies
        self._held_bytes += more
        body.held += more

    @staticmethod
    async def _refuse(error: HTTPException, scope: Scope, receive: Receive, send: Send) -> None:
        status = error.status_code
        body = error_body(str(error.detail), status=status, code=getattr(error, "code", None))
        headers = {**error_headers(status), "connection": "close"}
        await JSONResponse(body, status, headers)(scope, receive, send)


class _Body:
    """Follow one request's body as it comes in."""

    def __init__(self, limit: int, is_upload: bool, pause_seconds: float) -> None:
        self.limit = limit
        self._is_upload = is_upload
        self.held = 0
        self._pause_seconds = pause_seconds
        self._received = 0
        self._waited_seconds = 0.0  # for the client: what the server does in between is not its slowness
        self._complete = False

    async def next(self, receive: Receive) -> Message:
        """Return the next message; raise BodyTooSlow or BodyTooLarge."""
        if self._complete:
            return await receive()  # now waits for the client to leave, which may take any time
        patience = 2 * self._pause_seconds + self._received / _MIN_BYTES_PER_SECOND - self._waited_seconds
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(self._pause_seconds, max(patience, 0.0))):
                message = await receive()
        except TimeoutError:
            raise BodyTooSlow from None
        self._waited_seconds += time.monotonic() - began
        self._received += len(message.get("body", b""))
        if self._received > self.limit:
            raise BodyTooLarge(self.limit, is_upload=self._is_upload)
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message


def _is_upload(path: str, content_type: bytes) -> bool:
    is_form = content_type.strip().lower().startswith(b"multipart/form-data")
    return is_form and path.startswith(_UPLOAD_PREFIXES)


def _is_ambiguous(scope: Scope) -> bool:
    """Tell whether a proxy may see another end of the body than this server, and so another next request."""
    names = {name for name, _ in scope["headers"]}
    return {b"content-length", b"transfer-encoding"} <= names
