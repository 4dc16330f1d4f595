"""How bodies are bounded while they stream in: the client's slowness only, and the memory of all together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import ANY

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import install_handlers
from server.metrics import Metrics
from server.middleware import BodyGuard, RequestFrame

CHUNK = b"x" * 1000
JSON = b"application/json"
FORM = b"multipart/form-data; boundary=x"


def scope(path: str = "/v1/vqa", kind: bytes = JSON) -> Scope:
    return {"type": "http", "method": "POST", "path": path, "headers": [(b"content-type", kind)]}


def client(chunks: int) -> Receive:
    """Return a client that sends a body at once, chunk by chunk, then stays."""
    left = chunks

    async def receive() -> Message:
        nonlocal left
        await asyncio.sleep(0)
        left -= 1
        return {"type": "http.request", "body": CHUNK, "more_body": left > 0}

    return receive


async def status_of(app: ASGIApp, where: Scope, receive: Receive) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app(where, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def guard(between: Callable[[], Awaitable[object]], **options: Any) -> BodyGuard:
    async def app(where: Scope, receive: Receive, send: Send) -> None:
        async for _ in Request(where, receive).stream():
            await between()
        await PlainTextResponse("done")(where, receive, send)

    limits = {"max_request_bytes": 4000, "max_upload_bytes": 10**6, "max_held_bytes": 4000}
    return BodyGuard(app, **{"pause_seconds": 30.0, **limits, **options})


async def test_a_server_that_takes_its_time_does_not_make_the_client_slow():
    stalled = guard(lambda: asyncio.sleep(0.75), pause_seconds=0.5)
    assert (await status_of(stalled, scope(), client(3)))[0] == 200


async def test_bodies_in_memory_are_bounded_all_together():
    go_on, inside = asyncio.Event(), asyncio.Semaphore(0)

    async def hold() -> None:
        inside.release()
        await go_on.wait()

    guarded = guard(hold)
    holders = [asyncio.create_task(status_of(guarded, scope(), client(1))) for _ in range(4)]
    for _ in holders:
        await inside.acquire()
    status, headers, body = await status_of(guarded, scope(), client(1))
    assert status == 429
    assert int(headers[b"retry-after"]) >= 1
    assert json.loads(body)["error"]["code"] == "too_many_bodies"
    upload = scope("/v1/files", b"multipart/form-data; boundary=b")
    uploading = asyncio.create_task(status_of(guarded, upload, client(9)))
    await inside.acquire()
    go_on.set()
    assert (await uploading)[0] == 200, "an upload goes to disk and takes no memory"
    assert [(await holder)[0] for holder in holders] == [200] * 4
    assert (await status_of(guarded, scope(), client(4)))[0] == 200, "room is given back"


async def test_the_refusal_keeps_its_code_through_the_routes():
    app = FastAPI()
    install_handlers(app)

    @app.post("/v1/vqa")
    async def read(request: Request) -> int:
        return len(await request.body())

    guarded = BodyGuard(
        app, max_request_bytes=4000, max_upload_bytes=4000, max_held_bytes=4000, pause_seconds=30.0
    )
    where = {**scope(), "query_string": b"", "root_path": "", "http_version": "1.1"}
    assert await status_of(guarded, where, client(4)) == (200, ANY, b"4000")
    guarded._held_bytes = 3500
    status, headers, body = await status_of(guarded, where, client(1))
    assert (status, json.loads(body)["error"]["code"]) == (429, "too_many_bodies")
    assert b"retry-after" in headers


@pytest.mark.parametrize("started", [False, True])
async def test_a_request_that_a_stop_cancels_raises_nothing(started: bool):
    sent: list[Message] = []
    waits = asyncio.Event()

    async def app(_: Scope, __: Receive, send: Send) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        waits.set()
        await asyncio.Event().wait()

    async def send(message: Message) -> None:
        sent.append(message)

    task = asyncio.create_task(RequestFrame(app, Metrics())(scope(), client(1), send))
    await waits.wait()
    task.cancel()
    await task
    assert sent[0]["status"] == (200 if started else 503)
    assert started or b"the server is stopping" in sent[1]["body"]


@pytest.mark.parametrize(("kind", "advice"), [(JSON, "as a file"), (FORM, "split the data set")])
async def test_a_body_that_is_too_large_says_what_helps(kind: bytes, advice: str):
    small = guard(lambda: asyncio.sleep(0), max_request_bytes=1500, max_upload_bytes=1500)
    status, _, body = await status_of(small, scope("/v1/tasks/x/batches", kind), client(3))
    assert status == 413
    assert advice in json.loads(body)["error"]["message"]
