"""Ask the running server over HTTP, many questions at once, and count what comes back."""

from __future__ import annotations

import asyncio
import base64
import itertools
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

_TIMEOUT_SECONDS = 120.0
_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Question:
    """Pair a picture and a question with the answer that is right."""

    picture_png: bytes
    text: str
    answer: str

    def body(self, model: str) -> dict[str, object]:
        """Return the chat completion request that asks it."""
        url = f"data:image/png;base64,{base64.b64encode(self.picture_png).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": self.text}]
        return {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": _MAX_TOKENS,
            "temperature": 0,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """Hold one answer: its text, the version that gave it, and how long it took."""

    text: str
    version: str
    seconds: float


def matches(given: str, right: str) -> bool:
    """Return whether an answer is the right one, letter case, spaces and a final dot aside."""
    return given.strip().rstrip(".").strip().casefold() == right.strip().casefold()


async def ask(client: httpx.AsyncClient, question: Question, model: str) -> Answer:
    """Ask one question; raise httpx.HTTPError for anything but a full answer."""
    began = time.monotonic()
    response = await client.post("/v1/chat/completions", json=question.body(model))
    response.raise_for_status()
    body = response.json()
    text = str(body["choices"][0]["message"]["content"])
    return Answer(text, str(body.get("system_fingerprint")), time.monotonic() - began)


@dataclass(slots=True)
class Tally:
    """Count requests, failures and latencies; `reasons` keeps the first few failures in words."""

    sent: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def add_answer(self, answer: Answer) -> None:
        """Count an answer."""
        self.sent += 1
        self.seconds.append(answer.seconds)
        self.versions[answer.version] = self.versions.get(answer.version, 0) + 1

    def add_failure(self, error: Exception) -> None:
        """Count a failure."""
        self.sent += 1
        self.failed += 1
        if len(self.reasons) < 5:
            self.reasons.append(f"{type(error).__name__}: {error}"[:300])

    def merge(self, other: Tally) -> None:
        """Add another tally to this one."""
        self.sent += other.sent
        self.failed += other.failed
        self.seconds += other.seconds
        self.reasons = (self.reasons + other.reasons)[:5]
        for version, count in other.versions.items():
            self.versions[version] = self.versions.get(version, 0) + count

    def latency_seconds(self, quantile: float) -> float:
        """Return a quantile of the latencies, NaN without any."""
        if not self.seconds:
            return math.nan
        ordered = sorted(self.seconds)
        return ordered[min(int(quantile * len(ordered)), len(ordered) - 1)]


async def _ask_all(
    url: str, model: str, questions: Sequence[Question], concurrency: int, tally: Tally
) -> list[Answer | None]:
    gate = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_SECONDS, trust_env=False) as client:

        async def one(question: Question) -> Answer | None:
            async with gate:
                try:
                    answer = await ask(client, question, model)
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    tally.add_failure(error)
                    return None
                tally.add_answer(answer)
                return answer

        return list(await asyncio.gather(*(one(question) for question in questions)))


def score(
    url: str, model: str, questions: Sequence[Question], *, concurrency: int, tally: Tally
) -> tuple[float, list[Answer | None]]:
    """Ask all questions and return the share that was answered right, and the answers.

    Args:
        url: Address of the gateway.
        model: Model name to ask.
        questions: Held-out questions with their right answers.
        concurrency: How many are under way at once.
        tally: Counts requests and failures; a failed question counts as wrong.
    """
    answers = asyncio.run(_ask_all(url, model, questions, concurrency, tally))
    right = sum(a is not None and matches(a.text, q.answer) for a, q in zip(answers, questions, strict=True))
    return right / len(questions), answers


class BackgroundClient:
    """Ask one question after the other in a thread of its own until stopped."""

    def __init__(
        self, url: str, model: str, questions: Sequence[Question], pause_seconds: float = 0.5
    ) -> None:
        self.tally = Tally()
        self._url = url
        self._model = model
        self._questions = questions
        self._pause_seconds = pause_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="background-client")

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> Tally:
        """Finish the question under way and return the counts."""
        self._stop.set()
        self._thread.join(timeout=_TIMEOUT_SECONDS)
        return self.tally

    def _run(self) -> None:
        asyncio.run(self._ask_on())

    async def _ask_on(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
            for question in itertools.cycle(self._questions):
                if self._stop.is_set():
                    return
                try:
                    self.tally.add_answer(await ask(client, question, self._model))
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    self.tally.add_failure(error)
                await asyncio.sleep(self._pause_seconds)
