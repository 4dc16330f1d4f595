"""The ``transformers`` engine: continuous batching over one frozen LLaVA with coefficients per request.

One thread steps: schedule, run, postprocess. Callers live in asyncio loops; chunks reach them in one
hand-over per loop and step. The library's own continuous batching takes token ids only: pictures and
coefficients have no way in, and its prefix sharing would mix up pictures.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING

import torch

from adapter_store.bank import Bank
from adapter_store.errors import EngineBusy, UnavailableError
from adapter_store.increments import attach
from adapter_store.rendering import Renderer
from adapter_store.settings import DENSE_RANK
from server.engine.banks import Banks, BankSlot
from server.engine.detokenizer import TokenTexts
from server.engine.intake import Intake
from server.engine.limits import device_limits
from server.engine.outbox import Outbox
from server.engine.prefix_cache import PrefixCache
from server.engine.protocol import Chunk, EngineStats, FinishReason, GenerationRequest
from server.engine.runner import Runner
from server.engine.sampler import Picked, Sampler
from server.engine.scheduler import Piece, Plan, Scheduler
from server.engine.sequence import Sequence

if TYPE_CHECKING:
    from adapter_store.base.load import Base
    from adapter_store.state import AdapterState

log = logging.getLogger(__name__)

_GATHER_SECONDS = 0.004
"""An idle engine waits so long for the companions of a request: a prompt alone takes a step of its own."""


class TransformersEngine:
    """Serve one base with resident adapter banks; implements the ``Engine`` protocol."""

    def __init__(
        self,
        base: Base,
        *,
        targets: tuple[str, ...] = ("o_proj",),
        frozen_share: float = 0.0,
        banks: int = 2,
        dense_rank: int = DENSE_RANK,
        max_batch: int = 32,
        max_model_len: int = 1024,
        max_waiting: int = 256,
        prefill_tokens: int | None = None,
        mixed_prefill_tokens: int | None = None,
        kv_bytes: int | None = None,
        prefix_cache_bytes: int | None = None,
        idle_seconds: float = 30.0,
    ) -> None:
        """Attach increments to ``base.model`` and size the memory; what is None the device decides.

        Args:
            base: a loaded base; its model is switched to grouped attention and never changed otherwise.
            targets: linears that versions may adapt.
            frozen_share: part of the decoder layers, from the bottom, that no version adapts.
            banks: how many versions are resident at once.
            dense_rank: total rank up to which a pool is computed whole; of a larger one only what is touched.
            max_batch: rows that run at once.
            max_model_len: longest prompt + answer, in tokens.
            max_waiting: requests that may wait; one more is refused.
            prefill_tokens: prompt tokens a step when no row decodes.
            mixed_prefill_tokens: prompt tokens a step while rows decode; bounds the gap between their tokens.
            kv_bytes: upper bound of the running rows' keys and values.
            prefix_cache_bytes: upper bound of remembered prefixes.
            idle_seconds: give the rows' memory back after this long without work.
        """
        base.model.eval()
        limits = device_limits(base.model.device).but(
            prefill_tokens=prefill_tokens,
            mixed_prefill_tokens=mixed_prefill_tokens,
            kv_bytes=kv_bytes,
            prefix_cache_bytes=prefix_cache_bytes,
        )
        self._runner = Runner(
            base.model,
            attach(base.model, targets, frozen_share),
            image_token_id=base.image_token_id,
            max_batch=max_batch,
            max_model_len=max_model_len,
            kv_bytes=limits.kv_bytes,
        )
        self._banks = Banks(self._build_bank, banks)
        self._prefixes = PrefixCache(limits.prefix_cache_bytes)
        self._scheduler = Scheduler(
            self._runner.memory,
            self._prefixes,
            max_batch=max_batch,
            prefill_tokens=limits.prefill_tokens,
            mixed_prefill_tokens=limits.mixed_prefill_tokens,
        )
        self._end_ids = Renderer(base).stop_ids
        self._max_model_len = max_model_len
        self._intake = self._open_intake(base, dense_rank)
        self._sampler = Sampler(self._intake.texts)
        self._max_waiting, self._idle_seconds = max_waiting, idle_seconds
        self._wake = threading.Condition()
        self._arrivals: list[Sequence] = []
        self._outbox: Outbox[Chunk] = Outbox()
        self._thread: threading.Thread | None = None
        self._stopping = self._forget = False
        self._died: str | None = None
        self._counts = {"prompt": 0, "generated": 0, "steps": 0, "failed": 0}
        self._step_seconds = self._last_step_seconds = 0.0

    def _open_intake(self, base: Base, dense_rank: int) -> Intake:
        return Intake(
            self._banks,
            TokenTexts(base.tokenizer),
            vocab_size=self._runner.embed_tokens.weight.shape[0],
            image_token_id=base.image_token_id,
            turn_end_ids=self._end_ids,
            max_model_len=self._max_model_len,
            dense_rank=dense_rank,
        )

    @property
    def whole_rank(self) -> int:
        """Give the total rank up to which a pool is computed whole."""
        return self._intake.dense_rank

    @property
    def max_model_len(self) -> int:
        """Give the largest prompt + answer length, in tokens."""
        return self._max_model_len

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Give ``(layers, d_in, d_out)`` of every linear that versions may adapt."""
        return self._runner.increments.shapes

    def start(self) -> None:
        """Start the engine's thread; calling it again does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
            self._thread.start()

    def shutdown(self) -> None:
        """End running requests with ``finish_reason="abort"`` and wait for the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        """Stream the answer; see ``Engine.generate``."""
        queue: asyncio.Queue[Chunk] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        sequence = self._intake.take(
            request, lambda chunk: self._outbox.add(loop, queue, chunk), self._enqueue
        )
        try:
            while True:
                chunk = await queue.get()
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            self._abort(sequence)

    async def stage(self, version: str, state: AdapterState) -> None:
        """Make ``state`` answerable as ``version``; see ``Engine.stage``."""
        await self._banks.stage(version, state)

    def loaded(self) -> dict[str, int]:
        """Give every loaded version with its number of requests in flight."""
        return self._banks.loaded()

    def release(self, version: str) -> None:
        """Let ``version``'s bank be refilled when drained."""
        self._banks.release(version)

    def forget_prefixes(self) -> None:
        """Empty the prefix cache at the next step."""
        with self._wake:
            self._forget = True

    def stats(self) -> EngineStats:
        """Read the counters; safe from any thread."""
        scheduler, memory = self._scheduler, self._runner.memory
        return EngineStats(
            alive=self._died is None and self._thread is not None and self._thread.is_alive(),
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + len(self._arrivals),
            kv_used_tokens=sum(sequence.filled for sequence in list(scheduler.running)),
            kv_capacity_tokens=memory.slots * memory.length,
            kv_bytes=memory.nbytes,
            prefix_cache_bytes=self._prefixes.nbytes,
            prefix_hits_total=scheduler.prefix_hits,
            prefix_misses_total=scheduler.prefix_misses,
            prompt_tokens_total=self._counts["prompt"],
            generated_tokens_total=self._counts["generated"],
            steps_total=self._counts["steps"],
            step_seconds_total=self._step_seconds,
            last_step_seconds=self._last_step_seconds,
            failed_requests_total=self._counts["failed"],
            error=self._died,
        )

    def _build_bank(self, state: AdapterState, slot: BankSlot) -> Bank:
        """Fill the slot's old bank in place if ``state`` fits it, else allocate another."""
        old = slot.bank
        self._runner.increments.check_fits(state, "the state")
        if old is not None and state.rank == old.rank and state.rows <= old.capacity:
            old.fill(state)
            return old
        return Bank.from_state(state, dtype=self._runner.dtype, device=self._runner.device)

    def _enqueue(self, sequence: Sequence) -> None:
        with self._wake:
            if self._thread is None or self._stopping or self._died is not None:
                raise UnavailableError("the engine is not running; look at /health and restart the server")
            waiting = len(self._arrivals) + len(self._scheduler.waiting)
            idle = max(0, self._scheduler.max_batch - len(self._scheduler.running))
            if waiting >= self._max_waiting + idle:
                raise EngineBusy(f"{waiting} requests are waiting already; try again later")
            self._arrivals.append(sequence)
            self._wake.notify()

    def _abort(self, sequence: Sequence) -> None:
        if not sequence.done:
            with self._wake:
                sequence.aborted = True
                self._wake.notify()

    @torch.inference_mode()
    def _loop(self) -> None:
        try:
            while self._await_work():
                self._step()
        except Exception as error:
            log.exception("the engine's thread died")
            self._died = f"{type(error).__name__}: {error}"
        finally:
            with torch.inference_mode():  # rows that move in memory are tensors of that mode
                self._end_everyone()

    def _await_work(self) -> bool:
        """Sleep until there is something to do; false when the engine stops."""
        with self._wake:
            idle = False
            while not (
                self._stopping or self._arrivals or self._scheduler.waiting or self._scheduler.running
            ):
                idle = True
                if not self._wake.wait(self._idle_seconds):
                    self._runner.memory.shrink()
            if idle:
                self._wake.wait_for(lambda: self._stopping, _GATHER_SECONDS)
            self._scheduler.waiting.extend(self._arrivals)
            self._arrivals.clear()
            if self._forget:
                self._prefixes.clear()
                self._forget = False
            return not self._stopping

    def _step(self) -> None:
        """Schedule, run, postprocess."""
        began = time.perf_counter()
        for sequence in self._scheduler.reap(lambda row: row.aborted):
            self._close(sequence, Chunk("", finish_reason="abort"))
        try:
            plan = self._scheduler.schedule()
            if plan:
                self._postprocess(*self._run(plan))
                self._counts["steps"] += 1
                self._last_step_seconds = time.perf_counter() - began
                self._step_seconds += self._last_step_seconds
        except Exception as error:
            log.exception("a step failed")
            self._fail(list(self._scheduler.running) or list(self._scheduler.waiting)[:1], error)
        self._outbox.flush()

    def _run(self, plan: Plan) -> tuple[list[Sequence], list[torch.Tensor]]:
        """Compute the plan; give the rows that need a token now, and parts of their ``[n, hidden]``."""
        rows: list[Sequence] = []
        parts: list[torch.Tensor] = []
        if plan.decode:
            try:
                parts.append(self._runner.decode(plan.decode))
            except Exception as error:
                log.exception("decoding failed")
                self._fail(plan.decode, error)
            else:
                rows += plan.decode
                for sequence in plan.decode:
                    sequence.filled += 1
        if plan.prefill:
            self._prefill(plan.prefill, rows, parts)
        return rows, parts

    def _prefill(self, pieces: Rows[Piece], rows: list[Sequence], parts: list[torch.Tensor]) -> None:
        """Compute prompt pieces and add the rows whose prompts are now complete."""
        try:
            hidden = self._runner.prefill(pieces)
        except Exception as error:
            if len(pieces) > 1:  # find the one that is at fault; the others go on
                for piece in pieces:
                    self._prefill([piece], rows, parts)
            else:
                log.exception("a prompt failed")
                self._fail([pieces[0].sequence], error)
            return
        complete = self._scheduler.advance(pieces)
        rows += [pieces[index].sequence for index in complete]
        parts.append(hidden[complete])

    def _postprocess(self, rows: Rows[Sequence], parts: Rows[torch.Tensor]) -> None:
        """Pick tokens, stream text, and let finished rows go."""
        if not rows:
            return
        hidden = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        picks = self._sampler.pick(self._runner.logits(hidden), rows)
        for sequence, picked in zip(rows, picks, strict=True):
            if not picked.healthy:
                self._fail([sequence], ArithmeticError("the model's output was not finite"))
                continue
            if not sequence.output:
                self._scheduler.remember(sequence)
                self._counts["prompt"] += sequence.prompt_tokens
            try:
                self._accept(sequence, picked)
            except Exception as error:
                log.exception("a token cannot be told")
                self._fail([sequence], error)

    def _accept(self, sequence: Sequence, picked: Picked) -> None:
        sequence.append(picked.token_id)
        self._counts["generated"] += 1
        ended = picked.token_id in self._end_ids and not sequence.sampling.ignore_eos
        text = "" if ended else sequence.stream.push(picked.token_id)
        reason: FinishReason | None = None
        if ended or sequence.stream.stopped:
            reason = "stop"
        elif len(sequence.output) >= sequence.max_tokens:
            reason = "length"
        if reason is not None:
            text += sequence.stream.finish()
        chunk = Chunk(
            text=text,
            token_ids=() if ended else (picked.token_id,),
            logprobs=(picked.logprob,) if picked.logprob is not None and not ended else None,
            finish_reason=reason,
            prompt_tokens=sequence.prompt_tokens,
            completion_tokens=len(sequence.output),
            cached_tokens=sequence.cached,
        )
        if reason is None:
            sequence.emit(chunk)
            return
        self._scheduler.remove(sequence)
        self._close(sequence, chunk)

    def _fail(self, sequences: Rows[Sequence], error: Exception) -> None:
        """End sequences with an error that says what kind it was and nothing of the machine."""
        not_finite = type(error) is ArithmeticError
        failed = f"a step failed: {type(error).__name__}; the request can be repeated"
        message = str(error) if not_finite else failed
        for sequence in sequences:
            self._counts["failed"] += 1
            self._scheduler.remove(sequence, poisoned=True)
            self._close(sequence, Chunk("", finish_reason="error", error=message, not_finite=not_finite))

    def _close(self, sequence: Sequence, chunk: Chunk) -> None:
        if sequence.done:
            return
        sequence.done = True
        self._banks.leave(sequence.lease)
        sequence.emit(chunk)

    def _end_everyone(self) -> None:
        with self._wake:
            self._scheduler.waiting.extend(self._arrivals)
            self._arrivals.clear()
        for sequence in self._scheduler.reap(lambda _: True):
            if self._died is None:
                self._close(sequence, Chunk("", finish_reason="abort"))
            else:
                self._close(sequence, Chunk("", finish_reason="error", error="the engine stopped working"))
        self._outbox.flush()
