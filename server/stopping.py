"""End what still runs at a stop in words: streams get an error event and ``[DONE]``, not a cut line."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from server.gateway import Gateway


class GracefulServer(uvicorn.Server):
    """Serve until told to stop; answers that take longer then are broken off before uvicorn cancels them."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, answer_seconds: float) -> None:
        """Let answers run for ``answer_seconds``, which must be less than uvicorn's own limit."""
        super().__init__(config)
        self._gateway = gateway
        self._answer_seconds = answer_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams of job events at once, and answers when their time is over."""
        self._gateway.link.stopping = True
        ending = asyncio.create_task(self._end_answers())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_answers(self) -> None:
        await asyncio.sleep(self._answer_seconds)
        if self._gateway.serving is not None:
            await asyncio.to_thread(self._gateway.serving.engine.shutdown)
