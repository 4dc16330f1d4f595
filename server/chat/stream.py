"""Stream a chat answer: role, content, finish reason, usage, ``[DONE]``; an error in between as an event."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from starlette.types import Receive, Scope, Send

from server.chat.protocol import ChatRequest, choice_delta, chunk_body, usage_body
from server.chat.service import chunk_choices, head_of, open_chat
from server.engine import Chunk
from server.errors import describe
from server.event_stream import EventStream
from server.gateway import Gateway
from server.generation import Generation
from server.logs import log

DONE = b"data: [DONE]\n\n"


class HeldStream(EventStream):
    """A stream that gives up what it holds when it ends, however it ends and even if it never began."""

    def __init__(self, content: AsyncIterator[bytes], held: AsyncExitStack, headers: dict[str, str]) -> None:
        super().__init__(content, headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, then release the lease and the generation."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._held.aclose()


async def stream_chat(gateway: Gateway, chat: ChatRequest) -> HeldStream:
    """Return the response once the first chunk is in hand; before that, errors are plain error answers."""
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(open_chat(gateway, chat))
        chunks = running.chunks()
        stack.push_async_callback(chunks.aclose)  # type: ignore[attr-defined]
        first = await anext(chunks)
        head = head_of(chat, running)
        body = _events(chat, running, head, first, chunks)
        return HeldStream(body, stack.pop_all(), {"x-adapter-version": running.leased.version})
    raise AssertionError("unreachable: the stack swallows nothing")


async def _events(
    chat: ChatRequest,
    running: Generation,
    head: dict[str, Any],
    first: tuple[int, Chunk],
    rest: AsyncIterator[tuple[int, Chunk]],
) -> AsyncIterator[bytes]:
    finished: dict[int, Chunk] = {}
    role = {"role": "assistant", "content": ""}
    yield _event(chunk_body(head, [choice_delta(index, role) for index in range(chat.n or 1)], None))
    try:
        for body in _bodies(head, first, finished):
            yield body
        async for item in rest:
            for body in _bodies(head, item, finished):
                yield body
    except Exception as error:  # noqa: BLE001  the status is sent: the error has to be told in the stream
        status, body, _ = describe(error)
        if status == 500:
            log("stream failed", logging.ERROR, error=error)
        yield _event(body)
        yield DONE
        return
    if chat.stream_options and chat.stream_options.include_usage:
        completed = sum(chunk.completion_tokens for chunk in finished.values())
        cached = max((chunk.cached_tokens for chunk in finished.values()), default=0)
        yield _event(chunk_body(head, [], usage_body(running.prompt_tokens, completed, cached)))
    yield DONE


def _bodies(head: dict[str, Any], item: tuple[int, Chunk], finished: dict[int, Chunk]) -> list[bytes]:
    index, chunk = item
    if chunk.finish_reason:
        finished[index] = chunk
    return [_event(chunk_body(head, [choice], None)) for choice in chunk_choices(index, chunk)]


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
