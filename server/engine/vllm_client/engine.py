"""The ``vllm`` engine: vLLM's scheduling and kernels, Strata's pool, the ``transformers`` engine's answers.

vLLM runs in processes of its own (or in a thread of this one). They hold the frozen language model and the
banks; this side checks requests, leases banks, turns tokens into text and keeps the engine alive: one that
died is started again and gets the versions it had before it takes the next request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import torch

from adapter_store.errors import BaseModelError, EngineBusy, StateInvalid, TargetMismatch, UnavailableError
from adapter_store.rendering import Renderer
from server.engine.banks import Banks, BankSlot, spread
from server.engine.detokenizer import TokenTexts
from server.engine.gathered import gate_of_rows, touched
from server.engine.protocol import Chunk, EngineStats, GenerationRequest
from server.engine.requests import answer_limit, check_request
from server.engine.vllm_client.options import VllmOptions, engine_args, prepare_environment
from server.engine.vllm_plugin.requests import Gated
from server.logs import log

if TYPE_CHECKING:
    from adapter_store.base.load import Base
    from adapter_store.state import AdapterState
    from server.engine.vllm_client.answers import Answer
    from server.engine.vllm_client.cores import Core

_WATCH_SECONDS = 0.25


class VllmEngine:
    """Serve one base through vLLM with resident adapter banks; implements the ``Engine`` protocol.

    Attributes:
        described: what vLLM's workers said of their part: shapes, capacity, model runner, graphs or not.
    """

    def __init__(self, base: Base, options: VllmOptions) -> None:
        """Prepare to serve ``base``; nothing is loaded before ``start``.

        Args:
            base: a loaded base; of its model only what concerns pictures is used.
            options: how vLLM is run.
        """
        self._base, self._options = base, options
        self._dtype: torch.dtype = base.model.dtype
        self._end_ids = frozenset(Renderer(base).stop_ids)
        self._texts = TokenTexts(base.tokenizer)
        self._vocab_size = int(base.model.get_input_embeddings().num_embeddings)
        self._banks = Banks(self._build_bank, options.banks)
        self._states: dict[int, AdapterState] = {}
        self._core: Core | None = None
        self.described: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, int, int]] = {}
        self._opening: Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._attached = False
        self._attaching = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        self._answers: dict[str, Answer] = {}
        self._counts = {"prompt": 0, "generated": 0, "failed": 0, "hits": 0, "misses": 0, "restarts": 0}
        self._died: str | None = None

    @property
    def max_model_len(self) -> int:
        """Give the largest prompt + answer length, in tokens."""
        return self._options.max_model_len

    def start(self) -> None:
        """Begin to start vLLM in the background; the first request waits. Calling it again does nothing."""
        if self._opening is None:
            self._opening = self._open()

    def shutdown(self) -> None:
        """End running requests with ``finish_reason="abort"`` and stop vLLM."""
        self._stopping = True
        if self._keeper is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._keeper.cancel)
        if self._opening is not None:
            try:
                self._opening.result()
            except Exception:  # noqa: BLE001  it was reported when it happened
                return
        if self._core is not None:
            self._core.close()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        """Stream the answer; see ``Engine.generate``."""
        core = await self._ready()
        check_request(
            request,
            vocab_size=self._vocab_size,
            image_token_id=self._base.image_token_id,
            max_model_len=self.max_model_len,
        )
        if len(self._answers) >= self._options.max_batch + self._options.max_waiting:
            waiting = len(self._answers) - self._options.max_batch
            raise EngineBusy(f"{waiting} requests are waiting already; try again later")
        lease = self._banks.acquire(request.version)
        try:
            gated = self._gated(request, lease)
            async for chunk in self._run(core, request, gated):
                yield chunk
        finally:
            self._banks.leave(lease)

    async def stage(self, version: str, state: AdapterState) -> None:
        """Make ``state`` answerable as ``version``; see ``Engine.stage``."""
        await self._ready()
        await self._banks.stage(version, state)

    def loaded(self) -> dict[str, int]:
        """Give every loaded version with its number of requests in flight."""
        return self._banks.loaded()

    def release(self, version: str) -> None:
        """Let ``version``'s bank be refilled when drained."""
        self._banks.release(version)

    def stats(self) -> EngineStats:
        """Read the counters; safe from any thread. A request counts as running from its first token on."""
        answers = list(self._answers.values())
        running = sum(1 for answer in answers if answer.completion_tokens)
        core = self._core
        alive = core is not None and not core.dead and self._died is None and not self._stopping
        return EngineStats(
            alive=alive,
            running=running,
            waiting=len(answers) - running,
            kv_used_tokens=sum(answer.prompt_tokens + answer.completion_tokens for answer in answers),
            kv_capacity_tokens=0 if core is None else core.kv_tokens,
            prefix_hits_total=self._counts["hits"],
            prefix_misses_total=self._counts["misses"],
            prompt_tokens_total=self._counts["prompt"],
            generated_tokens_total=self._counts["generated"],
            failed_requests_total=self._counts["failed"],
            error=self._died,
        )

    async def _run(self, core: Core, request: GenerationRequest, gated: Gated | None) -> AsyncIterator[Chunk]:
        from server.engine.vllm_client.answers import Answer
        from server.engine.vllm_client.cores import CoreDied
        from server.engine.vllm_client.prompts import engine_prompt, sampling_params

        answer = Answer(request, self._texts, self._end_ids)
        limit = answer_limit(request, self.max_model_len)
        params = sampling_params(request.sampling, limit, self._end_ids, gated)
        prompt = engine_prompt(request, self._base.image_token_id, gated)
        key = f"{request.request_id}-{id(answer):x}"
        self._answers[key] = answer
        outputs = core.submit(key, prompt, params)
        try:
            async for output in outputs:
                for chunk in answer.take(output):
                    yield chunk
                if answer.done:
                    break
        except CoreDied:
            if self._stopping:
                yield answer.end("abort")
            else:
                self._counts["failed"] += 1
                yield answer.end(
                    "error", "the engine stopped working and is started again; repeat the request"
                )
        finally:
            del self._answers[key]
            self._count(answer)
            await outputs.aclose()  # pyright: ignore[reportAttributeAccessIssue]  an async generator

    def _gated(self, request: GenerationRequest, lease: BankSlot) -> Gated | None:
        """Return what a request brings to the workers; of a large pool only what it touches."""
        gate = spread(lease, request.coefficients)
        if gate is None:
            return None
        rows = None if self.described["fixed"] else touched(lease, gate, self._options.dense_rank)
        if rows is not None:
            gate = gate_of_rows(gate, rows, lease.rank)
        return Gated(lease.index, gate, request.gate_start, rows, lease.rank)

    def _count(self, answer: Answer) -> None:
        self._counts["generated"] += answer.completion_tokens
        if answer.completion_tokens:
            self._counts["prompt"] += answer.prompt_tokens
            self._counts["hits" if answer.cached_tokens else "misses"] += 1

    # Opening, attaching, restarting

    def _open(self) -> Future[None]:
        """Load the model in a thread of its own, for that takes seconds to minutes."""
        opened: Future[None] = Future()

        def run() -> None:
            try:
                prepare_environment(self._options)
                self._core = self._make_core()
                self._core.open()
            except Exception as error:  # noqa: BLE001  handed to all who wait for it
                log("vLLM does not start", logging.ERROR, error=error)
                self._died = f"{type(error).__name__}: {error}"
                opened.set_exception(BaseModelError(f"vLLM does not start with this base: {error}"))
            else:
                opened.set_result(None)

        threading.Thread(target=run, name="vllm-open", daemon=True).start()
        return opened

    def _make_core(self) -> Core:
        from vllm.platforms import current_platform

        from server.engine.vllm_client.cores import ProcessCore, ThreadCore

        dtype = str(self._dtype).removeprefix("torch.")
        args = engine_args(self._options, self._base.path, dtype, on_cpu=current_platform.is_cpu())
        return ProcessCore(args) if self._options.own_process else ThreadCore(args)

    async def _ready(self) -> Core:
        """Wait for the first start; raise UnavailableError while a dead engine is started again."""
        if self._opening is None or self._stopping:
            raise UnavailableError("the engine is not running; look at /health and restart the server")
        if not self._attached:
            if self._counts["restarts"]:
                raise UnavailableError("the engine died and is being started again; try again soon")
            async with self._attaching:
                if not self._attached:
                    await asyncio.wrap_future(self._opening)
                    await self._attach()
                    self._keeper = asyncio.create_task(self._keep())
        core = self._core
        if core is None or core.dead:
            raise UnavailableError("the engine died and is being started again; try again soon")
        return core

    async def _attach(self) -> None:
        """Hook the pool in on every worker, prove that it acts, and bring back a dead engine's versions."""
        self._loop = asyncio.get_running_loop()
        core = self._core
        assert core is not None
        answers = await core.call("pool_attach")
        if any(answer != answers[0] for answer in answers):
            raise BaseModelError(f"vLLM's workers disagree on what is adapted: {answers}")
        self.described = answers[0]
        self._shapes = {name: tuple(shape) for name, shape in answers[0]["shapes"].items()}
        from server.engine.vllm_client.staging import prove_that_the_pool_acts

        await prove_that_the_pool_acts(core, self._shapes, self._base, self._dtype)
        for index, state in self._states.items():
            await self._fill(index, state)
        self._attached = True
        log("vLLM runs", **answers[0], kv_tokens=core.kv_tokens)

    async def _keep(self) -> None:
        """Start a dead engine again, as often as it dies."""
        while not self._stopping:
            await asyncio.sleep(_WATCH_SECONDS)
            core = self._core
            if core is None or not core.dead:
                continue
            self._attached = False
            self._counts["restarts"] += 1
            log("the engine died", logging.ERROR, restarted=core.restartable)
            if not core.restartable:
                self._died = "the engine's thread died; restart the server"
                return
            await asyncio.to_thread(core.close)
            self._opening = self._open()
            try:
                await asyncio.wrap_future(self._opening)
                await self._attach()
                self._died = None
            except Exception as error:  # noqa: BLE001  the next round tries again
                log("the engine cannot be started again", logging.ERROR, error=error)

    # Banks

    def _build_bank(self, state: AdapterState, slot: BankSlot) -> Any:
        """Fill the bank on every worker; runs in a thread that may wait."""
        self._check(state)
        self._states.pop(slot.index, None)
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._fill(slot.index, state), self._loop).result()
        self._states[slot.index] = state
        return slot.index

    def _check(self, state: AdapterState) -> None:
        if state.base_digest != self._base.digest:
            raise StateInvalid("the state was made for another base")
        if state.shapes != self._shapes:
            raise TargetMismatch(
                f"the state adapts {state.shapes}, this engine {self._shapes}: "
                f"set STRATA_TARGETS={','.join(state.shapes)} and the STRATA_FROZEN_SHARE it was taught with"
            )
        if state.total_rank > self._options.pool_rank:
            raise StateInvalid(
                f"the state's total rank is {state.total_rank}, a bank holds {self._options.pool_rank}: "
                "raise STRATA_POOL_RANK and restart the server"
            )

    async def _fill(self, bank: int, state: AdapterState) -> None:
        from server.engine.vllm_client.cores import CoreDied
        from server.engine.vllm_client.staging import fill

        core = self._core
        assert core is not None
        try:
            await fill(core, bank, state, self._dtype)
        except CoreDied:
            raise UnavailableError("the engine died while a version was loaded; try again soon") from None
