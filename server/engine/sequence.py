"""One request on its way through the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from server.engine.banks import BankSlot
from server.engine.detokenizer import TextStream
from server.engine.prefix_cache import Segment
from server.engine.protocol import Chunk, GenerationRequest, Sampling

if TYPE_CHECKING:
    from adapter_store.gathering import Gathered


@dataclass(slots=True, eq=False)
class Sequence:
    """Hold a request's progress: how much of it lies in which slot, and what was generated.

    ``gate`` is ``[R]``, the coefficients spread over ranks, or None for the base; with ``rows``, the touched
    increments of a large pool, it covers only those, and ``gathered`` is their copy. ``filled`` counts tokens
    whose keys lie in ``slot``. ``emit`` hands a chunk to the waiting caller and may be called from the
    engine's thread only.
    """

    request: GenerationRequest
    emit: Callable[[Chunk], None]
    stream: TextStream
    max_tokens: int
    lease: BankSlot
    gate: torch.Tensor | None = None
    rows: tuple[int, ...] | None = None
    gathered: Gathered | None = None
    segments: tuple[Segment, ...] = ()
    generator: torch.Generator | None = None
    slot: int = -1
    filled: int = 0
    cached: int = 0
    embeds: torch.Tensor | None = None
    output: list[int] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    aborted: bool = False
    done: bool = False
    arrived_seconds: float = field(default_factory=time.monotonic)

    @property
    def sampling(self) -> Sampling:
        """Give the request's sampling settings."""
        return self.request.sampling

    @property
    def prompt_tokens(self) -> int:
        """Give the prompt's length."""
        return len(self.request.input_ids)

    @property
    def reserved_tokens(self) -> int:
        """Give the longest this sequence can become."""
        return self.prompt_tokens + self.max_tokens

    @property
    def prefilled(self) -> bool:
        """Tell whether the whole prompt lies in the slot."""
        return self.filled >= self.prompt_tokens

    def append(self, token_id: int) -> None:
        """Record a generated token."""
        self.output.append(token_id)
        if self.sampling.frequency_penalty or self.sampling.presence_penalty:
            self.counts[token_id] = self.counts.get(token_id, 0) + 1
