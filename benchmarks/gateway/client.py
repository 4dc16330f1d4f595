"""Streams over HTTP from a process of their own: what clients cost is not the gateway's."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from types import TracebackType
from typing import Any, Self

from benchmarks.live.load import Answer, ask, at_most, post
from benchmarks.live.questions import Asked


class ClientProcess:
    """Hold one process that asks; use as a context manager.

    Attributes:
        pid: its process id, once it runs.
    """

    pid: int

    def __enter__(self) -> Self:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self.pid = self._pool.submit(os.getpid).result()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def ask(self, url: str, questions: Sequence[Asked], concurrent: int) -> tuple[list[Answer], float]:
        """Ask all, ``concurrent`` at a time; return the answers and the seconds from first to last.

        Raises:
            RuntimeError: a request failed.
        """
        return self._answers(_ask, url, questions, concurrent)

    def show(self, url: str, questions: Sequence[Asked], concurrent: int) -> None:
        """Let the tower see all pictures beforehand: whichever load comes first would pay for it alone."""
        self.ask(url, [Asked(asked.picture, asked.text, 1) for asked in questions], concurrent)

    def ask_and_rate(
        self, url: str, questions: Sequence[Asked], concurrent: int, *, correct: bool
    ) -> tuple[list[Answer], float]:
        """Ask as ``ask`` does, in the name of a user each, and send a feedback to every answer.

        Args:
            url: address of the gateway.
            questions: what is asked.
            concurrent: questions at a time; feedback is sent beside them.
            correct: send a correction with each thumb.

        Returns:
            The answers, and the seconds until the last of them and of the feedbacks.
        """
        return self._answers(_ask_and_rate, url, questions, concurrent, correct)

    def _answers(
        self, work: Callable[..., tuple[list[Answer], float]], *given: Any
    ) -> tuple[list[Answer], float]:
        answers, seconds = self._pool.submit(work, *given).result()
        failed = next((answer.failure for answer in answers if answer.failure), None)
        if failed:
            raise RuntimeError(f"a request failed: {failed}")
        return answers, seconds


@dataclass(frozen=True, slots=True)
class SignedQuestion(Asked):
    """A question in the name of a user, by whom a canary is drawn."""

    def body(self, model: str) -> dict[str, Any]:
        """Return the request with its user."""
        return {**Asked.body(self, model), "user": f"user-{self.picture}"}


def _ask_and_rate(
    url: str, questions: Sequence[Asked], concurrent: int, correct: bool
) -> tuple[list[Answer], float]:
    signed = [SignedQuestion(one.picture, one.text, one.max_tokens) for one in questions]
    bodies = [one.body("strata") for one in signed]
    gate = asyncio.Semaphore(concurrent)

    async def one(asked: Asked, body: dict[str, Any]) -> Answer:
        async with gate:
            answer = await ask(url, asked, "strata")
        if not answer.failure:
            given = {"rating": "up", "question": asked.text, "answer": answer.text, "version": answer.version}
            if correct:
                image = body["messages"][0]["content"][0]["image_url"]["url"]
                given |= {"image": image, "correction": "something else", "task": "benchmark"}
            await post(url, "/v1/feedback", given)
        return answer

    async def everyone() -> list[Answer]:
        return list(await asyncio.gather(*map(one, signed, bodies)))

    began = time.time()
    return asyncio.run(everyone()), time.time() - began


def _ask(url: str, questions: Sequence[Asked], concurrent: int) -> tuple[list[Answer], float]:
    for asked in questions:
        asked.body("strata")  # draws its picture: what a client sends is made beforehand
    began = time.time()
    answers = asyncio.run(at_most(url, questions, ["strata"] * len(questions), concurrent))
    return answers, time.time() - began
