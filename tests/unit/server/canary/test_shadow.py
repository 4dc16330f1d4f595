"""The shadow waits for room, gives its place up, and counts what it could compare."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from server.canary import shadow as shadow_module
from server.canary.shadow import Copy, Shadow
from server.engine import Chunk, Engine, EngineStats, GenerationRequest, Sampling
from server.metrics import Metrics
from server.retrieval import Prepared, Question, Retriever
from tests.unit.server.test_residency import World


class ScriptedEngine:
    """Say three words; what it reports of other requests is set by the test."""

    def __init__(self) -> None:
        self.running = self.waiting = 0
        self.waiting_in_answer = 0
        self.closed = 0
        self.end = Chunk("", finish_reason="stop")

    def stats(self) -> EngineStats:
        return EngineStats(running=self.running, waiting=self.waiting)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        self.waiting = self.waiting_in_answer
        try:
            for word in ("one ", "two ", "three"):
                await asyncio.sleep(0)
                yield Chunk(word)
            yield self.end
        finally:
            self.closed += 1


class ReadyRetriever:
    async def prepare(self, question: Question) -> Prepared:
        assert question.features == ()
        return Prepared((1,), (), 0, None, None, None)


class Shaded:
    def __init__(self, home: Path) -> None:
        self.residents = World(home).residents
        self.engine = ScriptedEngine()
        self.metrics = Metrics()
        self.finished: list[tuple[str, bool]] = []
        self.shadow = Shadow(
            engine=cast("Engine", self.engine),
            retriever=cast("Retriever", ReadyRetriever()),
            residents=self.residents,
            metrics=self.metrics,
            room=2,
            waiting=4,
            finished=lambda version, _, error: self.finished.append((version, error is not None)),
        )

    def offer(self, text: str = "one two three", asked_at: float | None = None) -> None:
        prepared = Prepared((1,), (), 0, None, None, None)
        now = time.monotonic() if asked_at is None else asked_at
        self.shadow.offer(Copy("v1", (), prepared, Sampling(), text, now))

    def outcomes(self) -> dict[str, float]:
        names = ("same", "different", "dropped", "failed")
        found = {name: self._sample(name) for name in names}
        return {name: count for name, count in found.items() if count}

    def _sample(self, outcome: str) -> float:
        labels = {"outcome": outcome}
        return self.metrics.registry.get_sample_value("strata_shadow_compared_total", labels) or 0.0

    async def until(self, **wanted: float) -> None:
        running = asyncio.create_task(self.shadow.run())
        try:
            async with asyncio.timeout(30):
                while self.outcomes() != wanted:  # noqa: ASYNC110  counters have no event
                    await asyncio.sleep(0.005)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
        assert sum(self.residents.inflight().values()) == 0, "no lease is left behind"


@pytest.fixture
async def shaded(tmp_path: Path) -> Shaded:
    found = Shaded(tmp_path)
    await found.residents.bring("v1")
    return found


async def test_texts_are_compared(shaded: Shaded):
    shaded.offer()
    shaded.offer("one two four")
    await shaded.until(same=1, different=1)
    assert (shaded.shadow.agreement.compared, shaded.shadow.agreement.same) == (2, 1)
    assert shaded.finished == [("v1", False), ("v1", False)]


async def test_it_waits_for_room_and_drops_what_waited_too_long(
    shaded: Shaded, monkeypatch: pytest.MonkeyPatch
):
    shaded.engine.running = 2
    shaded.offer(asked_at=time.monotonic() - 60)
    await shaded.until(dropped=1)
    monkeypatch.setattr(shadow_module, "_LOOK_SECONDS", 0.001)
    shaded.offer()
    freed = asyncio.get_running_loop().call_later(0.05, setattr, shaded.engine, "running", 1)
    await shaded.until(dropped=1, same=1)
    assert freed.when() <= asyncio.get_running_loop().time()


async def test_it_gives_its_place_up_in_mid_answer(shaded: Shaded):
    shaded.engine.waiting_in_answer = 1
    shaded.offer()
    await shaded.until(dropped=1)
    assert (shaded.engine.closed, shaded.finished) == (1, [])


async def test_a_version_that_is_not_resident_is_not_brought_in(shaded: Shaded):
    prepared = Prepared((1,), (), 0, None, None, None)
    shaded.shadow.offer(Copy("v2", (), prepared, Sampling(), "", time.monotonic()))
    await shaded.until(dropped=1)
    assert not shaded.residents.ready("v2")


@pytest.mark.parametrize(
    ("end", "outcome", "told"),
    [
        (Chunk("", finish_reason="error", error="out of memory"), "failed", [("v1", True)]),
        (Chunk("", finish_reason="abort"), "dropped", []),
    ],
)
async def test_a_broken_answer_is_no_disagreement(shaded: Shaded, end: Chunk, outcome: str, told: list[Any]):
    shaded.engine.end = end
    shaded.offer()
    await shaded.until(**{outcome: 1})
    assert shaded.shadow.agreement.compared == 0
    assert shaded.finished == told
    shaded.engine.end = Chunk("", finish_reason="stop")
    shaded.offer()
    await shaded.until(**{outcome: 1, "same": 1})


async def test_another_shadow_begins_with_an_empty_line(shaded: Shaded):
    shaded.offer()
    shaded.shadow.begin_again()
    shaded.offer("two")
    await shaded.until(dropped=1, different=1)
    assert shaded.shadow.agreement.compared == 1
