"""The boundary between the gateway and an inference engine: the records and the protocol.

An engine takes token ids, image features, a version id and a coefficient vector, and gives text back.
It knows nothing of HTTP, aliases, chat templates or routing.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

    from adapter_store.state import AdapterState
    from adapter_store.vision import ImageFeatures

BASE_VERSION = "base"

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Say how tokens are picked and when generation ends.

    ``temperature`` 0 is greedy. ``logprobs`` None reports none, 0 reports the picked token only, k > 0 adds
    the k most likely tokens. ``max_tokens`` None means as many as the context allows; more is cut to that.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Carry one prompt to the engine.

    ``input_ids`` holds every image placeholder expanded; ``images`` lie in the order of their placeholders.
    Tokens from ``gate_start`` on are adapted. ``coefficients`` is the vector c of eq. 5, ``[N]`` float, for
    the state staged as ``version``; None or all zero is the base.
    """

    request_id: str
    input_ids: tuple[int, ...] | list[int]
    images: tuple[ImageFeatures, ...] = ()
    gate_start: int = 0
    version: str = BASE_VERSION
    coefficients: torch.Tensor | None = None
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """Hold one candidate token: its text, natural log probability and UTF-8 bytes."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Hold the picked token with its log probability and the likeliest candidates there, best first."""

    token: str
    token_id: int
    logprob: float
    bytes: tuple[int, ...]
    top: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Carry what became known in one step: new text, its tokens, and the reason if this is the last chunk.

    ``text`` may be empty while characters or a possible stop string are incomplete. ``token_ids`` and
    ``logprobs`` hold the new tokens, the end token excluded. ``completion_tokens`` counts all tokens produced
    so far, the end token included. ``cached_tokens`` is how many prompt tokens came from the prefix cache.
    ``not_finite`` says of an error that the model's output was no number: the request would fail again.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None
    not_finite: bool = False


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Report the engine's state; counters with ``_total`` only grow.

    ``restarting`` says of an engine that is not alive that it is being started again by itself. What an
    engine does not count is NaN; vLLM has series of its own for it.
    """

    alive: bool = True
    restarting: bool = False
    running: int = 0
    waiting: int = 0
    kv_used_tokens: int = 0
    kv_capacity_tokens: int = 0
    kv_bytes: float = math.nan
    prefix_cache_bytes: float = math.nan
    prefix_hits_total: int = 0
    prefix_misses_total: int = 0
    prompt_tokens_total: int = 0
    generated_tokens_total: int = 0
    steps_total: float = math.nan
    step_seconds_total: float = math.nan
    last_step_seconds: float = math.nan
    failed_requests_total: int = 0
    error: str | None = None


class Engine(Protocol):
    """Generate text for many requests at once over one frozen base and resident adapter banks."""

    @property
    def max_model_len(self) -> int:
        """Give the largest prompt + answer length, in tokens."""
        ...

    @property
    def whole_rank(self) -> int:
        """Give the total rank up to which a pool is computed whole; contexts of a larger one are folded."""
        ...

    def start(self) -> None:
        """Start the engine's thread or process; calling it again does nothing."""
        ...

    def shutdown(self) -> None:
        """Stop: running requests end with ``finish_reason="abort"``; returns when the thread is gone."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        """Stream the answer; closing or canceling the iterator frees the request's slot within one step.

        Raises (all at the first ``__anext__``):
            EngineBusy: the waiting line is full.
            InputError: the prompt is empty or too long, or images and placeholders disagree.
            NotFoundError: ``version`` is neither ``base`` nor loaded.
        """
        ...

    async def stage(self, version: str, state: AdapterState) -> None:
        """Make ``state`` answerable as ``version`` while requests run.

        Takes a free bank, else waits until the oldest released (see ``release``) bank has no request in
        flight. A version that is loaded already is left as it is, and no longer released. Raises
        ``UnavailableError`` when every bank is taken and none was released.
        """
        ...

    def loaded(self) -> dict[str, int]:
        """Give every loaded version, ``base`` among them, with its number of requests in flight."""
        ...

    def release(self, version: str) -> None:
        """Let ``version``'s bank be refilled when drained; until then it still answers. Unknown: ignored."""
        ...

    def stats(self) -> EngineStats:
        """Read the counters; safe from any thread."""
        ...
