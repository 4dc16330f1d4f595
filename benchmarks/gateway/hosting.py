"""A gateway in a thread of this process, so that the same engine can be asked with and without HTTP."""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import uvicorn

from adapter_store.errors import UnavailableError
from adapter_store.rendering import Message
from benchmarks.live.process import sample_of
from benchmarks.live.questions import Asked, picture_of
from server.app import create_app
from server.engine import GenerationRequest, Sampling
from server.gateway import Gateway
from server.retrieval import Question
from server.settings import GatewaySettings
from server.stopping import GracefulServer

Result = TypeVar("Result")
_START_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Hold what one load of concurrent streams took.

    Attributes:
        seconds: from the first request to the last token.
        loop_seconds: processor time of the gateway's event loop meanwhile.
        first_seconds: mean time to the first token.
    """

    tokens: int
    seconds: float
    loop_seconds: float
    first_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Return the rate over all streams."""
        return self.tokens / self.seconds


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings, by name, of a gateway that runs ``--concurrent`` streams as the flags say."""
    named = {name: getattr(arguments, name) for name in ("engine", "base", "device", "threads")}
    return {**named, "max_batch": arguments.concurrent, "max_waiting": 4 * arguments.concurrent}


class HostedGateway:
    """Run the whole gateway behind real uvicorn in a thread; use as a context manager.

    Args:
        home: folder of versions and queue.
        settings: settings of the gateway by name.
    """

    def __init__(self, home: Path, settings: dict[str, Any]) -> None:
        self._app = create_app(GatewaySettings(home=home, **settings))
        config = uvicorn.Config(
            self._app, loop="asyncio", http="h11", port=0, log_config=None, access_log=False
        )
        self._server = GracefulServer(config, self.gateway, 5.0)
        self._thread = threading.Thread(target=self._server.run, name="gateway")

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started or self.gateway.serving is None:
            failed = self.gateway.failure
            if failed is not None or not self._thread.is_alive() or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise failed or UnavailableError("the gateway did not come up")
            time.sleep(0.05)
        listener = self._server.servers[0]
        self.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        self._loop = listener.get_loop()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(60)

    @property
    def gateway(self) -> Gateway:
        """Return the parts of the running gateway."""
        return self._app.state.gateway

    def on_loop(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the gateway's own event loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def loop_seconds(self) -> float:
        """Return the processor time that the event loop's thread has used so far."""

        async def read() -> float:
            return time.thread_time()

        return self.on_loop(read())

    def sample(self, name: str) -> float:
        """Return one of the gateway's own series without labels."""
        return sample_of(self.gateway.metrics.render().decode(), name)

    def forget(self) -> None:
        """Let the engine forget prefixes, where it is one that remembers them."""
        forget = getattr(self.gateway.ready().engine, "forget_prefixes", None)
        if forget is not None:
            forget()

    def direct(self, questions: Sequence[Asked]) -> LoadResult:
        """Ask all at once without HTTP: routed and encoded as ever, and given to the engine."""
        pictures = [picture_of(asked.picture) for asked in questions]
        before = self.loop_seconds()
        began = time.time()

        async def one(asked: Asked, picture: Any) -> tuple[int, float]:
            serving = self.gateway.ready()
            async with serving.live.lease("strata") as leased:
                state = leased.resident.state if leased.resident else None
                message = Message("user", asked.text, 1)
                prepared = await serving.retriever.prepare(Question((message,), (picture,), state))
                request = GenerationRequest(
                    request_id=f"direct-{asked.picture}",
                    input_ids=prepared.input_ids,
                    images=prepared.images,
                    gate_start=prepared.gate_start,
                    version=leased.version,
                    coefficients=prepared.coefficients,
                    sampling=Sampling(max_tokens=asked.max_tokens),
                )
                tokens, first = 0, 0.0
                async for chunk in serving.engine.generate(request):
                    first = first or time.time() - began
                    tokens = chunk.completion_tokens
                    if chunk.error:
                        raise RuntimeError(chunk.error)
                return tokens, first

        async def everyone() -> list[tuple[int, float]]:
            return await asyncio.gather(*(one(a, p) for a, p in zip(questions, pictures, strict=True)))

        results = self.on_loop(everyone())
        seconds = time.time() - began
        first = sum(result[1] for result in results) / len(results)
        return LoadResult(sum(result[0] for result in results), seconds, self.loop_seconds() - before, first)
