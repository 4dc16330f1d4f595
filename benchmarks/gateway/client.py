"""Streams over HTTP from a process of their own: what clients cost is not the gateway's."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import TracebackType
from typing import Self

from benchmarks.live.load import Answer, at_most
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
        answers, seconds = self._pool.submit(_ask, url, questions, concurrent).result()
        failed = next((answer.failure for answer in answers if answer.failure), None)
        if failed:
            raise RuntimeError(f"a request failed: {failed}")
        return answers, seconds


def _ask(url: str, questions: Sequence[Asked], concurrent: int) -> tuple[list[Answer], float]:
    for asked in questions:
        asked.body("strata")  # draws its picture: what a client sends is made beforehand
    began = time.time()
    answers = asyncio.run(at_most(url, questions, ["strata"] * len(questions), concurrent))
    return answers, time.time() - began
