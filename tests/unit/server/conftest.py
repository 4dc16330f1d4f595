"""A server for the command line's tests that answers from a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from tests.scripted_http import Asked, Reply, ScriptedServer


class Answering:
    """Make a real HTTP server answer each path from a table, and give its address.

    Attributes:
        keys: the ``Idempotency-Key`` of each request, or None.
    """

    def __init__(self) -> None:
        self.keys: list[str | None] = []
        self._servers: list[ScriptedServer] = []

    def __call__(self, answers: Mapping[str, Reply]) -> str:
        def answer(asked: Asked) -> Reply:
            self.keys.append(asked.headers["Idempotency-Key"])
            return answers[asked.path]

        self._servers.append(ScriptedServer(answer))
        return self._servers[-1].url

    def stop(self) -> None:
        for server in self._servers:
            server.stop()


@pytest.fixture
def answering() -> Iterator[Answering]:
    """Return what makes servers that answer from tables, one for each call."""
    servers = Answering()
    yield servers
    servers.stop()
