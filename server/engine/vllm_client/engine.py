"""The ``vllm`` engine: vLLM's scheduling and kernels, Strata's pool, the ``transformers`` engine's answers.

vLLM runs in processes of its own (or in a thread of this one). They hold the frozen language model and the
banks; this side checks requests, leases banks, turns tokens into text and keeps the engine alive: one that
died is started again and gets the versions it had before it takes the next request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import torch

from adapter_store.errors import BaseModelError, EngineBusy, StateInvalid, StrataError, UnavailableError
from adapter_store.increments import check_shapes
from adapter_store.rendering import Renderer
from server.engine.banks import Banks, BankSlot, spread
from server.engine.detokenizer import TokenTexts
from server.engine.gathered import MOST_RANK, gate_of_rows, touched
from server.engine.protocol import Chunk, EngineStats, GenerationRequest
from server.engine.requests import answer_limit, check_request
from server.engine.vllm_client.core import Core, CoreDied
from server.engine.vllm_client.keeper import Keeper
from server.engine.vllm_client.options import VllmOptions, engine_args, prepare_environment
from server.engine.vllm_client.state_file import StateFolder
from server.engine.vllm_plugin.requests import Gated
from server.logs import log

if TYPE_CHECKING:
    from adapter_store.base.load import Base
    from adapter_store.state import AdapterState
    from server.engine.vllm_client.answers import Answer

_MOST_GATHERED_BYTES = 1 << 30


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
        self._files = StateFolder()
        self.described: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, int, int]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper = Keeper(self._make_core, self._prepare)
        self._answers: dict[str, Answer] = {}
        self._counts = {"prompt": 0, "generated": 0, "failed": 0, "hits": 0, "misses": 0}

    @property
    def max_model_len(self) -> int:
        """Give the largest prompt + answer length, in tokens."""
        return self._options.max_model_len

    @property
    def whole_rank(self) -> int:
        """Give the total rank up to which a pool is computed whole: in graphs all that a bank holds."""
        eager = self._options.eager
        fixed = self.described.get("fixed", torch.cuda.is_available() if eager is None else not eager)
        return self._options.pool_rank if fixed else self._options.dense_rank

    def start(self) -> None:
        """Begin to start vLLM in the background; the first request waits. Calling it again does nothing."""
        self._keeper.start()

    def shutdown(self) -> None:
        """End running requests with ``finish_reason="abort"`` and stop vLLM."""
        self._keeper.shutdown()
        self._files.close()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        """Stream the answer; see ``Engine.generate``."""
        core = await self._keeper.core()
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
            async with aclosing(self._run(core, request, gated)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._banks.leave(lease)

    async def stage(self, version: str, state: AdapterState) -> None:
        """Make ``state`` answerable as ``version``; see ``Engine.stage``."""
        await self._keeper.core()
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
        return EngineStats(
            alive=self._keeper.alive,
            restarting=self._keeper.restarting,
            running=running,
            waiting=len(answers) - running,
            kv_used_tokens=sum(
                answer.prompt_tokens + answer.completion_tokens
                for answer in answers
                if answer.completion_tokens
            ),
            kv_capacity_tokens=self._keeper.kv_tokens,
            prefix_hits_total=self._counts["hits"],
            prefix_misses_total=self._counts["misses"],
            prompt_tokens_total=self._counts["prompt"],
            generated_tokens_total=self._counts["generated"],
            failed_requests_total=self._counts["failed"],
            error=self._keeper.died,
        )

    async def _run(
        self, core: Core, request: GenerationRequest, gated: Gated | None
    ) -> AsyncGenerator[Chunk, None]:
        from server.engine.vllm_client.answers import Answer
        from server.engine.vllm_client.prompts import engine_prompt, sampling_params

        answer = Answer(request, self._texts, self._end_ids)
        limit = answer_limit(request, self.max_model_len)
        params = sampling_params(request.sampling, limit, self._end_ids, gated)
        prompt = engine_prompt(request, self._base.image_token_id, gated)
        key = f"{request.request_id}-{id(answer):x}"
        self._answers[key] = answer
        try:
            async with aclosing(core.submit(key, prompt, params)) as outputs:
                async for output in outputs:
                    for chunk in answer.take(output):
                        yield chunk
                    if answer.done:
                        break
        except CoreDied:
            if self._keeper.stopping:
                yield answer.end("abort")
            else:
                yield answer.end("error", self._keeper.told_of_death())
        finally:
            del self._answers[key]
            self._count(answer)

    def _gated(self, request: GenerationRequest, lease: BankSlot) -> Gated | None:
        """Return what a request brings to the workers; of a large pool only what it touches."""
        gate = spread(lease, request.coefficients)
        if gate is None:
            return None
        rows = (
            None
            if self.described["fixed"]
            else touched(lease, gate, self._options.dense_rank, self._most_gathered)
        )
        if rows is not None:
            gate = gate_of_rows(gate, rows, lease.rank)
        return Gated(lease.index, gate, request.gate_start, rows, lease.rank)

    def _count(self, answer: Answer) -> None:
        self._counts["generated"] += answer.completion_tokens
        self._counts["failed"] += answer.failed
        if answer.completion_tokens:
            self._counts["prompt"] += answer.prompt_tokens
            self._counts["hits" if answer.cached_tokens else "misses"] += 1

    @property
    def _most_gathered(self) -> int:
        """Return how much rank a request may gather, so that all that run together stay within a bound."""
        rank_bytes = sum(layers * (d_in + d_out) for layers, d_in, d_out in self._shapes.values())
        rank_bytes *= self._dtype.itemsize * self._options.max_batch
        return min(MOST_RANK, _MOST_GATHERED_BYTES // rank_bytes)

    # The engine's processes

    def _make_core(self) -> Core:
        prepare_environment(self._options)
        from vllm.platforms import current_platform

        from server.engine.vllm_client.cores import ProcessCore, ThreadCore

        args = engine_args(self._options, self._base.path, self._dtype, on_cpu=current_platform.is_cpu())
        return ProcessCore(args) if self._options.own_process else ThreadCore(args)

    async def _prepare(self, core: Core) -> None:
        """Hook the pool in on every worker, prove that it acts, and bring back a dead engine's versions."""
        from server.engine.vllm_client.staging import fill, prove_that_the_pool_acts

        self._loop = asyncio.get_running_loop()
        answers = await core.call("pool_attach")
        if any(answer != answers[0] for answer in answers):
            raise BaseModelError(f"vLLM's workers disagree on what is adapted: {answers}")
        self.described = answers[0]
        self._shapes = {name: tuple(shape) for name, shape in answers[0]["shapes"].items()}
        await prove_that_the_pool_acts(core, self._shapes, self._base, self._dtype, self._files)
        for index, state in list(self._states.items()):
            try:
                await fill(core, index, state, self._dtype, self._files)
            except StrataError as error:  # all others are answered; this one must be staged again
                log("a version did not come back", logging.ERROR, bank=index, reason=error.message)
                del self._states[index]
                self._banks.lose(index)
        log("vLLM runs", **answers[0], kv_tokens=core.kv_tokens)

    # Banks

    def _build_bank(self, state: AdapterState, slot: BankSlot) -> int:
        """Fill the bank on every worker; runs in a thread that may wait."""
        self._check(state)
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._fill(slot.index, state), self._loop).result()
        return slot.index

    def _check(self, state: AdapterState) -> None:
        if state.base_digest != self._base.digest:
            raise StateInvalid("the state was made for another base")
        check_shapes(state, "the state", self._shapes)
        if self.described["fixed"] and state.total_rank > self._options.pool_rank:
            raise StateInvalid(
                f"the state's total rank is {state.total_rank}, a bank holds {self._options.pool_rank}: "
                "raise STRATA_POOL_RANK and restart the server"
            )

    async def _fill(self, bank: int, state: AdapterState) -> None:
        from server.engine.vllm_client.staging import fill

        async with self._keeper.lock:
            core = await self._keeper.core()
            self._states.pop(bank, None)
            try:
                await fill(core, bank, state, self._dtype, self._files)
            except CoreDied:
                raise UnavailableError("the engine died while a version was loaded; try again soon") from None
            self._states[bank] = state
