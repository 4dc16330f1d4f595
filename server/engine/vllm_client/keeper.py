"""Keep one vLLM running: start it, have it prepared, and start it again when it dies."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

from adapter_store.errors import BaseModelError, UnavailableError
from server.engine.vllm_client.core import Core, CoreDied
from server.logs import log

_WATCH_SECONDS = 0.25
_STABLE_SECONDS = 60.0
"""A core that lived so long did not die of its start: the next attempt is made at once."""
_LONGEST_PAUSE_SECONDS = 60.0
RESTARTING = "the engine died and is being started again; try again soon"
STOPPED = "the engine is not running; look at /health and restart the server"


class Keeper:
    """Hold the running core; callers get it by ``core`` or learn why there is none.

    Attributes:
        lock: held while a core is prepared and while a bank is filled, so that neither sees half of the
            other.
        restarting: a dead core is being replaced.
        died: why there will be no core any more, or None.
    """

    def __init__(self, make: Callable[[], Core], prepare: Callable[[Core], Awaitable[None]]) -> None:
        """Start nothing yet.

        Args:
            make: returns a core that is not open; called in a thread.
            prepare: makes an open core ready for requests; its first call may raise StrataError for good.
        """
        self.lock = asyncio.Lock()
        self.restarting = False
        self.died: str | None = None
        self._make, self._prepare = make, prepare
        self._first: Future[Core] | None = None
        self._starting = asyncio.Lock()
        self._up: Core | None = None
        self._since_seconds = 0.0
        self._watching: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open_cores: set[Core] = set()
        self._stopping = False

    @property
    def alive(self) -> bool:
        """Tell whether requests can be answered now."""
        return self._up is not None and not self._up.dead and not self._stopping

    @property
    def stopping(self) -> bool:
        """Tell whether the end was asked for."""
        return self._stopping

    @property
    def kv_tokens(self) -> int:
        """Return how many tokens the key-value memory holds, 0 without a core."""
        return 0 if self._up is None else self._up.kv_tokens

    def start(self) -> None:
        """Begin to start a core in a thread; calling it again does nothing."""
        if self._first is None:
            self._first = self._open()

    def shutdown(self) -> None:
        """Stop watching and close whatever core there is; returns when it is gone."""
        self._stopping = True
        if self._watching is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._watching.cancel)
        if self._first is not None:
            self._first.exception()  # waits for a start that is under way
        for core in list(self._open_cores):
            self._close(core)

    async def core(self) -> Core:
        """Return the core, waiting for its first start.

        Raises:
            UnavailableError: there is none now.
            StrataError: the first start failed.
        """
        if self._first is None or self._stopping or self.died is not None:
            raise UnavailableError(STOPPED)
        if self._up is None and not self.restarting:
            async with self._starting:
                if self._up is None and not self.restarting:
                    self._loop = asyncio.get_running_loop()
                    await self._take(await asyncio.shield(asyncio.wrap_future(self._first)))
                    self._watching = asyncio.create_task(self._watch())
        if self._up is None or self._up.dead:
            raise UnavailableError(RESTARTING)
        return self._up

    def told_of_death(self) -> str:
        """Return what a request that was under way is told."""
        again = self._up is None or self._up.restartable
        return "the engine stopped working" + (" and is started again; repeat the request" if again else "")

    def _open(self) -> Future[Core]:
        """Open a core in a thread of its own: loading a model takes seconds to minutes."""
        opened: Future[Core] = Future()

        def run() -> None:
            core = None
            try:
                core = self._make()
                self._open_cores.add(core)
                core.open()
                if self._stopping:
                    raise UnavailableError(STOPPED)
            except Exception as error:  # noqa: BLE001  handed to all who wait for it
                log("vLLM does not start", logging.ERROR, error=error)
                if core is not None:
                    self._close(core)
                opened.set_exception(BaseModelError(f"vLLM does not start with this base: {error}"))
            else:
                opened.set_result(core)

        threading.Thread(target=run, name="vllm-open", daemon=True).start()
        return opened

    def _close(self, core: Core) -> None:
        self._open_cores.discard(core)
        try:
            core.close()
        except Exception as error:  # noqa: BLE001  it is gone either way
            log("vLLM did not stop cleanly", logging.WARNING, error=error)

    async def _take(self, core: Core) -> None:
        async with self.lock:
            try:
                await self._prepare(core)
            except CoreDied as error:
                raise UnavailableError(f"vLLM died while it was prepared: {error}") from error
        self._since_seconds = time.monotonic()
        self._up = core

    async def _watch(self) -> None:
        """Keep a core; should that itself fail, say that there will be none any more."""
        try:
            await self._keep()
        except Exception as error:
            self.died, self.restarting = f"the engine is not watched any more: {error}", False
            raise

    async def _keep(self) -> None:
        """Replace a dead core, with longer and longer pauses if that keeps failing."""
        failures = 0
        while not self._stopping:
            await asyncio.sleep(_WATCH_SECONDS)
            core = self._up
            if core is not None and not core.dead:
                continue
            if core is not None:
                lived = time.monotonic() - self._since_seconds
                failures = 0 if lived > _STABLE_SECONDS else failures + 1
                log(
                    "the engine died",
                    logging.ERROR,
                    after_seconds=round(lived, 1),
                    restarted=core.restartable,
                )
                if not core.restartable:
                    self.died = "the engine's thread died; restart the server"
                    return
                self.restarting, self._up = True, None
                await asyncio.to_thread(self._close, core)
            if failures > 1:
                await asyncio.sleep(min(2.0**failures, _LONGEST_PAUSE_SECONDS))
            if not await self._replace():
                failures += 1

    async def _replace(self) -> bool:
        """Try to open and prepare another core; tell whether it runs now."""
        core = None
        try:
            core = await asyncio.shield(asyncio.wrap_future(self._open()))
            await self._take(core)
        except Exception as error:  # noqa: BLE001  vLLM reports a failed call as a plain Exception
            log("the engine cannot be started again yet", logging.ERROR, error=error)
            if core is not None:
                await asyncio.to_thread(self._close, core)
            return False
        self.restarting = False
        return True
