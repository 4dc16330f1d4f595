"""Run vLLM's engine in a thread of this process or as a process of its own, behind one small interface."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from vllm import AsyncEngineArgs, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.engine.llm_engine import LLMEngine

from adapter_store.errors import UnavailableError
from server.engine.outbox import Outbox
from server.engine.vllm_client.core import CoreDied

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25


def _kv_tokens(config: Any) -> int:
    cache = config.cache_config
    return int(cache.num_gpu_blocks or 0) * int(cache.block_size)


class ProcessCore:
    """Run the engine as processes of its own (AsyncLLM): the gateway's event loop shares no lock with it."""

    restartable = True

    def __init__(self, args: AsyncEngineArgs) -> None:
        self._args = args
        self._llm: AsyncLLM | None = None

    def open(self) -> None:
        """Start the processes; see ``Core.open``."""
        self._llm = AsyncLLM.from_engine_args(self._args)

    @property
    def dead(self) -> bool:
        """Tell whether the process is gone."""
        return self._llm is not None and self._llm.errored

    @property
    def kv_tokens(self) -> int:
        """Return how many tokens the key-value memory holds."""
        return 0 if self._llm is None else _kv_tokens(self._llm.vllm_config)

    async def submit(
        self, request_id: str, prompt: Any, params: SamplingParams, lora: Any = None
    ) -> AsyncGenerator[Any, None]:
        """Stream outputs; see ``Core.submit``."""
        try:
            stream = self._open_llm.generate(prompt, params, request_id, lora_request=lora)
            async with aclosing(stream) as outputs:
                async for output in outputs:
                    yield output
        except (EngineDeadError, EngineGenerateError) as error:
            if isinstance(error, EngineGenerateError) and not self.dead:
                raise UnavailableError("the engine gave up on the request; repeat it") from error
            raise CoreDied("the engine process died") from error

    async def call(self, method: str, *args: Any) -> list[Any]:
        """Call every worker; see ``Core.call``."""
        called = asyncio.ensure_future(self._open_llm.collective_rpc(method, args=args))
        try:
            while not called.done():
                await asyncio.wait({called}, timeout=_LOOK_SECONDS)
                if self.dead:  # vLLM itself would wait for the answer for ever
                    break
            if not called.done():
                raise CoreDied("the engine process died")
            return called.result()
        except EngineDeadError as error:
            raise CoreDied("the engine process died") from error
        finally:
            called.cancel()

    def close(self) -> None:
        """Stop the processes."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown()

    @property
    def _open_llm(self) -> AsyncLLM:
        if self._llm is None:
            raise CoreDied("the engine is closed")
        return self._llm


@dataclass(frozen=True, slots=True)
class _Command:
    """What the engine's thread is asked to do, and what to do if there is no such thread any more."""

    run: Callable[[LLMEngine], None]
    fail: Callable[[], None]


class ThreadCore:
    """Run the engine in one thread of this process: no second process, for tests and small machines."""

    restartable = False  # vLLM keeps state in the process that a second engine trips over

    def __init__(self, args: AsyncEngineArgs) -> None:
        self._args = args
        self._engine: LLMEngine | None = None
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._streams: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Queue[Any]]] = {}
        self._outbox: Outbox[Any] = Outbox()
        self._opened: Future[None] = Future()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        self.dead = False

    def open(self) -> None:
        """Load the model in the engine's thread; see ``Core.open``."""
        self._thread.start()
        self._opened.result()

    @property
    def kv_tokens(self) -> int:
        """Return how many tokens the key-value memory holds."""
        return 0 if self._engine is None else _kv_tokens(self._engine.vllm_config)

    async def submit(
        self, request_id: str, prompt: Any, params: SamplingParams, lora: Any = None
    ) -> AsyncGenerator[Any, None]:
        """Stream outputs; see ``Core.submit``."""
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def add(engine: LLMEngine) -> None:
            self._streams[request_id] = (loop, outputs)
            try:
                engine.add_request(request_id, prompt, params, lora_request=lora)
            except Exception as error:  # noqa: BLE001  it belongs to the one who asked
                del self._streams[request_id]
                self._outbox.add(loop, outputs, error)

        def abort(engine: LLMEngine) -> None:
            if self._streams.pop(request_id, None) is not None:
                engine.abort_request([request_id])

        self._command(_Command(add, lambda: self._outbox.add(loop, outputs, _gone())))
        try:
            while True:
                output = await outputs.get()
                if isinstance(output, BaseException):
                    raise output
                yield output
                if output.finished:
                    return
        finally:
            self._commands.put(_Command(abort, _nothing))

    async def call(self, method: str, *args: Any) -> list[Any]:
        """Call the worker; see ``Core.call``."""
        answer: Future[list[Any]] = Future()

        def run(engine: LLMEngine) -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(engine.collective_rpc(method, args=args))
                except Exception as error:  # noqa: BLE001  it belongs to the one who called
                    answer.set_exception(error)

        def fail() -> None:
            if answer.set_running_or_notify_cancel():
                answer.set_exception(_gone())

        self._command(_Command(run, fail))
        return await asyncio.wrap_future(answer)

    def close(self) -> None:
        """Stop the thread."""
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _command(self, command: _Command) -> None:
        with self._lock:
            if not self._closed:
                self._commands.put(command)
                return
        raise _gone()

    def _run(self) -> None:
        try:
            self._engine = engine = LLMEngine.from_engine_args(self._args, enable_multiprocessing=False)
        except BaseException as error:  # noqa: BLE001  handed to the one who waits
            self._closed = True
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        try:
            while self._obey(engine):
                self._step(engine)
        except Exception:
            log.exception("the engine's thread died")
            self.dead = True
        self._end(engine)

    def _end(self, engine: LLMEngine) -> None:
        """Tell everybody who still waits, and stop vLLM."""
        with self._lock:
            self._closed = True
        while True:
            try:
                command = self._commands.get(block=False)
            except queue.Empty:
                break
            if command is not None:
                command.fail()
        for loop, outputs in self._streams.values():
            self._outbox.add(loop, outputs, _gone())
        self._outbox.flush()
        engine.engine_core.shutdown()

    def _obey(self, engine: LLMEngine) -> bool:
        """Carry out what was asked, waiting if there is nothing else to do; false ends the thread."""
        wait = not engine.has_unfinished_requests()
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command.run(engine)
            self._outbox.flush()
            wait = False

    def _step(self, engine: LLMEngine) -> None:
        if not engine.has_unfinished_requests():
            return
        for output in engine.step():
            stream = self._streams.get(output.request_id)
            if stream is not None:
                self._outbox.add(*stream, output)
                if output.finished:
                    del self._streams[output.request_id]
        self._outbox.flush()


def _gone() -> CoreDied:
    return CoreDied("the engine's thread is gone")


def _nothing() -> None:
    """Do nothing: who leaves need not be told."""
