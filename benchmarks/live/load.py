"""Ask a gateway over HTTP as a stream, at planned moments or all at once, and note when each token came.

The client reads lines off a socket: on a machine of two cores a full HTTP library would be measured too.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from benchmarks.live.figures import gaps_of
from benchmarks.live.questions import Asked

_TIMEOUT_SECONDS = 300.0


@dataclass(slots=True)
class Answer:
    """Hold what came back for one request; moments are seconds since 1970.

    Attributes:
        asked: the question.
        sent: when the request was begun.
        version: the version that answered, as the stream says.
        moments: when each piece of text arrived.
        failure: why the answer is none, or empty.
    """

    asked: Asked
    sent: float = 0.0
    version: str = ""
    text: str = ""
    tokens: int = 0
    finish: str = ""
    moments: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def gaps(self) -> list[float]:
        """Return the seconds between pieces of text."""
        return gaps_of(self.moments)

    @property
    def first_seconds(self) -> float:
        """Return the seconds to the first piece of text; NaN for an empty answer."""
        return self.moments[0] - self.sent if self.moments else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain values."""
        return asdict(self)


async def ask(url: str, asked: Asked, model: str) -> Answer:
    """Ask one question on a connection of its own; what goes wrong stands in the answer."""
    answer = Answer(asked, time.time())
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await _exchange(url, asked.body(model), answer)
    except (OSError, TimeoutError, ValueError, KeyError, asyncio.IncompleteReadError) as error:
        answer.failure = f"{type(error).__name__}: {error}"
    if not answer.failure and answer.finish not in ("stop", "length"):
        answer.failure = "the stream ended before the answer did"
    return answer


async def _exchange(url: str, body: dict[str, Any], answer: Answer) -> None:
    reader, writer = await _sent(url, "/v1/chat/completions", body)
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            rest = (await reader.read(4096)).decode("utf-8", "replace")
            answer.failure = f"{status.decode().strip()}: {rest.rpartition(chr(10))[2][:300]}"
            return
        while line := await reader.readline():
            if line.startswith(b"data: "):
                _take(line[6:].strip(), answer)
    finally:
        writer.close()


async def post(url: str, path: str, body: dict[str, Any]) -> None:
    """Send JSON on a connection of its own; raise RuntimeError with the answer if it is not a 200."""
    reader, writer = await _sent(url, path, body)
    try:
        answer = await reader.read()
    finally:
        writer.close()
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"{path} answered {answer[:500]!r}")


async def _sent(
    url: str, path: str, body: dict[str, Any]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 20)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: {place.netloc}\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()
    return reader, writer


def _take(data: bytes, answer: Answer) -> None:
    """Add one event of the stream; the lines that frame HTTP chunks never begin as one does."""
    now = time.time()
    if data == b"[DONE]":
        return
    event = json.loads(data)
    if "error" in event:
        answer.failure = str(event["error"].get("message", event["error"]))[:300]
        return
    answer.version = event["system_fingerprint"]
    if event.get("usage"):
        answer.tokens = event["usage"]["completion_tokens"]
    for choice in event["choices"]:
        if text := choice["delta"].get("content"):
            answer.text += text
            answer.moments.append(now)
        answer.finish = choice["finish_reason"] or answer.finish


async def open_loop(
    url: str,
    moments: Sequence[float],
    questions: Sequence[Asked],
    model: str,
    done: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Ask every question at its moment, whatever became of the others, and wait for all answers.

    Args:
        url: address of the gateway.
        moments: seconds from now, ascending.
        questions: one for each moment.
        model: what to ask.
        done: called after every answer.
    """
    began = time.monotonic()

    async def one(asked: Asked) -> Answer:
        answer = await ask(url, asked, model)
        done()
        return answer

    tasks: list[asyncio.Task[Answer]] = []
    for at, asked in zip(moments, questions, strict=True):
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        tasks.append(asyncio.create_task(one(asked)))
    return list(await asyncio.gather(*tasks))


async def at_most(
    url: str,
    questions: Sequence[Asked],
    models: Sequence[str],
    concurrent: int,
    done: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Ask every question of its own model, ``concurrent`` at a time, and return the answers in order."""
    gate = asyncio.Semaphore(concurrent)

    async def one(asked: Asked, model: str) -> Answer:
        async with gate:
            answer = await ask(url, asked, model)
            done()
            return answer

    return list(await asyncio.gather(*(one(a, m) for a, m in zip(questions, models, strict=True))))
