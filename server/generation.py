"""One question, leased to one version and answered by the engine: shared by every way of asking."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace

from PIL import Image

from adapter_store.errors import InputError, StrataError, UnavailableError
from adapter_store.rendering import Message
from server.adaptation import Leased
from server.canary.draw import Asker
from server.canary.pace import Pace
from server.canary.trials import Attempt, Trials
from server.engine import Chunk, GenerationRequest, Sampling
from server.metrics import Metrics
from server.retrieval import Prepared, Question
from server.serving import Serving


class GenerationFailed(UnavailableError):
    """Report an answer that the engine broke off."""

    code = "generation_failed"


@dataclass(slots=True)
class Answer:
    """Collect one choice as it grows."""

    chunks: list[Chunk] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Return the text so far."""
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def finish_reason(self) -> str:
        """Return why it ended, ``stop`` or ``length``."""
        return next((chunk.finish_reason for chunk in reversed(self.chunks) if chunk.finish_reason), "stop")

    @property
    def completion_tokens(self) -> int:
        """Return how many tokens were produced."""
        return self.chunks[-1].completion_tokens if self.chunks else 0


class Generation:
    """Hold a leased version and the running answers of one request."""

    def __init__(self, serving: Serving, attempt: Attempt, prepared: Prepared, metrics: Metrics) -> None:
        self.leased = attempt.leased
        self.prepared = prepared
        self._attempt = attempt
        self._trials = serving.trials
        self._metrics = metrics
        self._streams = [
            serving.engine.generate(self._request(self.leased, prepared, _seeded(attempt.sampling, choice)))
            for choice in range(attempt.choices)
        ]
        self._unfinished = attempt.choices

    @staticmethod
    def _request(leased: Leased, prepared: Prepared, sampling: Sampling) -> GenerationRequest:
        return GenerationRequest(
            request_id=f"gen-{uuid.uuid4().hex}",
            input_ids=prepared.input_ids,
            images=prepared.images,
            gate_start=prepared.gate_start,
            version=leased.version,
            coefficients=prepared.served,
            sampling=sampling,
        )

    @property
    def prompt_tokens(self) -> int:
        """Return the prompt's length, pictures included."""
        return len(self.prepared.input_ids)

    async def chunks(self) -> AsyncIterator[tuple[int, Chunk]]:
        """Yield (choice, chunk) as they come; every choice ends with a chunk that has a finish reason.

        Raises:
            GenerationFailed: the engine broke an answer off.
            StrataError: as ``Engine.generate`` raises.
        """
        outbox: asyncio.Queue[tuple[int, Chunk | BaseException | None]] = asyncio.Queue()
        tasks = [asyncio.create_task(self._pump(choice, outbox)) for choice in range(len(self._streams))]
        left, last = len(tasks), None
        try:
            while left:
                choice, item = await outbox.get()
                if item is None:
                    left -= 1
                elif isinstance(item, BaseException):
                    self._metrics.generations.labels(
                        "refused" if isinstance(item, StrataError) else "error"
                    ).inc()
                    raise item
                else:
                    last = self._note(item, last)
                    if self._attempt.is_comparable:
                        self._attempt.texts.append(item.text)
                    yield choice, item
            self._trials.answered(self._attempt, self.prepared)
        except (asyncio.CancelledError, GeneratorExit):
            self._trials.given_up(self._attempt)
            raise
        except Exception as error:
            _note_failure(self._trials, self._attempt, error)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(
        self, choice: int, outbox: asyncio.Queue[tuple[int, Chunk | BaseException | None]]
    ) -> None:
        stream = self._streams[choice]
        try:
            async for chunk in stream:  # here, since who reads slowly makes no version slow
                is_last = chunk.finish_reason is not None
                self._attempt.pace.note(choice, chunk.completion_tokens, time.perf_counter(), is_last=is_last)
                outbox.put_nowait((choice, chunk))
        except Exception as error:  # noqa: BLE001  handed to the one who reads the chunks
            outbox.put_nowait((choice, error))
        else:
            outbox.put_nowait((choice, None))
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
            self._unfinished -= 1
            if not self._unfinished:  # who reads slowly, or not at all, keeps no bank from the next version
                self.leased.give_back()

    def _note(self, chunk: Chunk, last: float | None) -> float:
        now = time.perf_counter()
        if last is None:
            self._metrics.first_token_seconds.observe(now - self._attempt.pace.started)
        else:
            self._metrics.token_gap_seconds.observe(now - last)
        if chunk.finish_reason:
            self._metrics.generations.labels(chunk.finish_reason).inc()
            self._metrics.tokens.labels("prompt").inc(self.prompt_tokens)
            self._metrics.tokens.labels("completion").inc(chunk.completion_tokens)
        if chunk.finish_reason in ("error", "abort"):
            why = chunk.error if chunk.finish_reason == "error" and chunk.error else "the server is stopping"
            raise GenerationFailed(f"the answer was broken off: {why}")
        return now

    async def finish(self) -> list[Answer]:
        """Collect every choice to its end."""
        answers = [Answer() for _ in self._streams]
        async for choice, chunk in self.chunks():
            answers[choice].chunks.append(chunk)
        return answers


@asynccontextmanager
async def generation(
    serving: Serving,
    metrics: Metrics,
    *,
    model: str,
    messages: tuple[Message, ...],
    images: AbstractAsyncContextManager[tuple[Image.Image, ...]],
    sampling: Sampling,
    choices: int = 1,
    asker: Asker = bytes,
) -> AsyncIterator[Generation]:
    """Lease the version that answers ``model`` and prepare the question for it.

    ``asker`` says who asks, for the draw of a canary.

    Raises:
        UnknownModel: no such model or version.
        ImageError: a picture cannot be used.
        InputError: the prompt is empty or leaves no room for an answer.
        EngineBusy: too many requests wait already.
    """
    started = time.perf_counter()
    async with serving.trials.lease(model, asker) as leased:
        attempt = Attempt(leased, asker, messages, sampling, choices, Pace(started))
        try:
            prepared = await prepared_question(serving, leased, messages, images, sampling.max_tokens)
        except asyncio.CancelledError:
            serving.trials.given_up(attempt)
            raise
        except Exception as error:
            _note_failure(serving.trials, attempt, error)
            raise
        if leased.resident is not None:
            metrics.routing_seconds.observe(prepared.routing_seconds)
            if prepared.task is None:
                metrics.unrouted.inc()
            else:
                metrics.routed.labels(prepared.task).inc()
        yield Generation(serving, attempt, prepared, metrics)


def _note_failure(trials: Trials, attempt: Attempt, error: Exception) -> None:
    """Count a failure for the version that answered, if neither the request nor a full server is to blame."""
    if isinstance(error, GenerationFailed) or not isinstance(error, StrataError):
        trials.failed(attempt)


async def prepared_question(
    serving: Serving,
    leased: Leased,
    messages: tuple[Message, ...],
    images: AbstractAsyncContextManager[tuple[Image.Image, ...]],
    max_tokens: int | None = None,
) -> Prepared:
    """Return what the engine takes for a question to a leased version; raises as ``generation`` does."""
    _check_size(messages, serving.max_model_len)
    state = leased.resident.state if leased.resident else None
    pool = leased.resident.pool if leased.resident else None
    async with images as pictures:
        prepared = await serving.retriever.prepare(Question(messages, pictures, state, pool))
    _check_room(len(prepared.input_ids), max_tokens, serving.max_model_len)
    return prepared


class TooLong(InputError):
    """Refuse a prompt that leaves no room for an answer."""

    code = "context_length_exceeded"


_MAX_CHARS_PER_TOKEN = 64


def _check_size(messages: tuple[Message, ...], max_model_len: int) -> None:
    """Refuse absurdly long text before the tokenizer spends seconds on it."""
    chars = sum(len(message.text) for message in messages)
    if chars > _MAX_CHARS_PER_TOKEN * max_model_len:
        text = (
            f"the messages have {chars} characters, far more than the context of {max_model_len} tokens holds"
        )
        raise TooLong(f"{text}; shorten them", param="messages")


def _check_room(prompt_tokens: int, max_tokens: int | None, max_model_len: int) -> None:
    if prompt_tokens >= max_model_len:
        text = f"the prompt has {prompt_tokens} tokens; the context holds {max_model_len}, answer included"
        raise TooLong(f"{text}; shorten the messages or send fewer pictures", param="messages")
    if max_tokens is not None and max_tokens > max_model_len:
        text = f"max_tokens is {max_tokens}; the context holds {max_model_len} tokens, prompt included"
        raise InputError(text, param="max_tokens")


def _seeded(sampling: Sampling, choice: int) -> Sampling:
    """Give every choice a seed of its own, so that n choices with a seed differ yet repeat."""
    if sampling.seed is None or choice == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed + choice) % 2**63)
