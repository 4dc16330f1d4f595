"""Answer with server-sent events that arrive as they are sent, through proxies, too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from fastapi.responses import StreamingResponse

# nginx and those that follow it collect an answer before they pass it on, unless this header forbids it.
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class EventStream(StreamingResponse):
    """A stream of events that nothing on the way stores or holds back."""

    def __init__(self, content: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(content, media_type="text/event-stream", headers={**_HEADERS, **(headers or {})})
