"""What happens on a connection before there is a request: heads that never end, and what is no HTTP at all.

Errors that uvicorn would answer in plain text get the one shape of all errors, so a client finds a message.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import error_body
from server.logs import log

_LINGER_SECONDS = 2.0
"""Time to read an early answer before the connection is reset, which may take the answer with it."""


_DEFAULT_HEAD_BYTES = 16 * 1024


class _BoundedHeads(h11.Connection):
    """Refuse too large a head also if it came at once: h11 itself measures unfinished ones only."""

    def __init__(self, limit: int) -> None:
        super().__init__(h11.SERVER, limit)
        self._limit = limit

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        """Return the next event as h11 does; raise RemoteProtocolError for a head that is too large."""
        held = len(self.trailing_data[0]) if self.their_state is h11.IDLE else 0
        event = super().next_event()
        if isinstance(event, h11.Request) and held - len(self.trailing_data[0]) > self._limit:
            raise h11.RemoteProtocolError("the head is too large", error_status_hint=431)
        return event


class GuardedConnection(H11Protocol):
    """Bound a request's head in size, and in time by that for which an idle connection is kept."""

    _head_timer: asyncio.TimerHandle | None = None
    _has_begun = False

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._head_bytes = self.config.h11_max_incomplete_event_size or _DEFAULT_HEAD_BYTES
        self.conn = _BoundedHeads(self._head_bytes)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Take what came; the time of a head runs until the head is whole."""
        self._has_begun = True
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()
        elif not self.transport.is_closing():
            self._expect_head()

    def on_response_complete(self) -> None:
        """Let the keep-alive time of an idle connection run; hang up on a body that goes on all the same."""
        self._forget_head()
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self.loop.call_later(_LINGER_SECONDS, self._hang_up, self.cycle)

    def _hang_up(self, answered: object) -> None:
        """Close if the client still sends the body of a request that was answered long ago."""
        if self.cycle is answered and self.conn.their_state is h11.SEND_BODY:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the head that will not come."""
        self._forget_head()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.timeout_keep_alive, self._give_up)

    def _forget_head(self) -> None:
        self._has_begun = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        """End a connection whose head is late: in words if it had begun, else like any idle connection."""
        self._head_timer = None
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return
        if self._has_begun:
            text = "the head of the request arrives too slowly; send it again without pauses"
            self._refuse(408, text, "head_timeout")
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 refuses to read; uvicorn calls this while it handles the error."""
        del msg
        error = sys.exception()
        if getattr(error, "error_status_hint", 400) == 431:
            limit = self._head_bytes
            text = f"the headers of the request are larger than the {limit} bytes accepted; send fewer"
            self._refuse(431, text, "headers_too_large")
        else:
            self._refuse(400, "this is not a request of HTTP/1.1; use an HTTP client", "invalid_http")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Send one error and close; an answer that is under way already is only broken off."""
        self._forget_head()
        log("a connection was refused", status=status, code=code)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error_body(message, status=status, code=code)).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
                (b"x-request-id", f"req-{uuid.uuid4().hex}".encode()),
            ]
            reason = HTTPStatus(status).phrase.encode()
            head = h11.Response(status_code=status, headers=headers, reason=reason)
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
