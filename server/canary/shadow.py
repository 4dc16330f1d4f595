"""Answer again, with the shadow's version, what stable answered; compare the texts, give neither out.

Copies wait in a short line and run one at a time, only while the engine has room to spare. What finds the
line full, waits too long, or is in the way of a request is dropped: nobody ever waits for a shadow.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from adapter_store.errors import UnavailableError
from adapter_store.rendering import Message
from server.engine import Engine, GenerationRequest, Sampling
from server.logs import log
from server.metrics import Metrics
from server.residency import Resident, Residents
from server.retrieval import Prepared, Question, Retriever

Outcome = Literal["same", "different", "dropped", "failed"]
Finished = Callable[[str, float, Exception | None], None]
"""Told the version, how long its answer took, and why it failed if it did."""
_LOOK_SECONDS = 0.05
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Copy:
    """One answered request: the question as it was prepared, how tokens were picked, and what was said."""

    version: str
    messages: tuple[Message, ...]
    prepared: Prepared
    sampling: Sampling
    text: str
    asked_at: float


class InTheWay(UnavailableError):
    """Report a copy that was given up because requests want its place."""


@dataclass(slots=True)
class Agreement:
    """Count the compared answers of one shadow."""

    compared: int = 0
    same: int = 0


class Shadow:
    """Run copies in the background.

    Args:
        engine: what answers the requests, too.
        retriever: finds the shadow's increments for a question.
        residents: lends the shadow's version; it is never brought in here.
        metrics: counts outcomes.
        room: requests that may run while a copy begins.
        waiting: copies that wait at most.
        finished: told of every answer.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        retriever: Retriever,
        residents: Residents,
        metrics: Metrics,
        room: int,
        waiting: int,
        finished: Finished,
    ) -> None:
        self.agreement = Agreement()
        self._engine = engine
        self._retriever = retriever
        self._residents = residents
        self._metrics = metrics
        self._room = max(1, room)
        self._line: asyncio.Queue[Copy] = asyncio.Queue(max(1, waiting))
        self._finished = finished

    def offer(self, copy: Copy) -> None:
        """Put a copy into the line, or drop it; returns at once."""
        try:
            self._line.put_nowait(copy)
        except asyncio.QueueFull:
            self._count("dropped", self.agreement)

    def begin_again(self) -> None:
        """Forget what was compared: another version is the shadow now."""
        self.agreement = Agreement()
        while not self._line.empty():
            self._line.get_nowait()
            self._metrics.shadow_compared.labels("dropped").inc()

    async def run(self) -> None:
        """Compare what comes, one after the other, until canceled."""
        while True:
            copy = await self._line.get()
            agreement = self.agreement
            try:
                outcome = await self._compare(copy)
            except Exception as error:  # noqa: BLE001  whatever a copy meets, the next one is taken
                log("a shadow answer failed", logging.WARNING, version=copy.version, reason=str(error)[:300])
                outcome = "failed"
            self._count(outcome, agreement)

    def _count(self, outcome: Outcome, agreement: Agreement) -> None:
        self._metrics.shadow_compared.labels(outcome).inc()
        if outcome in ("same", "different"):
            agreement.compared += 1
            agreement.same += outcome == "same"

    async def _compare(self, copy: Copy) -> Outcome:
        if not await self._is_free(copy.asked_at + _PATIENCE_SECONDS):
            return "dropped"
        if not self._residents.ready(copy.version):
            return "dropped"
        resident = self._residents.hold_ready(copy.version)
        started = time.perf_counter()
        try:
            text = await self._answer(copy, resident)
        except UnavailableError:
            return "dropped"
        except Exception as error:
            self._finished(copy.version, time.perf_counter() - started, error)
            raise
        finally:
            self._residents.drop(copy.version)
        self._finished(copy.version, time.perf_counter() - started, None)
        return "same" if text == copy.text else "different"

    async def _is_free(self, until: float) -> bool:
        """Wait until the engine has room to spare; tell whether it had before the clock passed ``until``."""
        while not self._has_room():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True

    def _has_room(self) -> bool:
        stats = self._engine.stats()
        return stats.alive and not stats.waiting and stats.running < self._room

    async def _answer(self, copy: Copy, resident: Resident | None) -> str:
        """Return what the version says.

        Raises:
            UnavailableError: requests want its place, or the engine stops.
            RuntimeError: the engine broke the answer off.
        """
        state = resident.state if resident else None
        pool = resident.pool if resident else None
        question = Question(copy.messages, (), state, pool, copy.prepared.images)
        prepared = await self._retriever.prepare(question)
        request = GenerationRequest(
            request_id=f"shadow-{uuid.uuid4().hex}",
            input_ids=prepared.input_ids,
            images=prepared.images,
            gate_start=prepared.gate_start,
            version=copy.version,
            coefficients=prepared.served,
            sampling=copy.sampling,
        )
        texts: list[str] = []
        in_the_way = 0
        async with aclosing(self._engine.generate(request)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if chunk.finish_reason == "abort":
                    raise UnavailableError("the engine is stopping")
                if chunk.finish_reason == "error":
                    raise RuntimeError(f"the engine gave up on it: {chunk.error}")
                texts.append(chunk.text)
                in_the_way = in_the_way + 1 if self._engine.stats().waiting else 0
                if in_the_way > 1:  # one look may see a request that is about to start
                    raise InTheWay("requests wait for the place of a shadow's answer")
        return "".join(texts)
