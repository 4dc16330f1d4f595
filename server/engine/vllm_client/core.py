"""The small interface behind which vLLM runs; naming it loads nothing of vLLM."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vllm import SamplingParams


class CoreDied(Exception):
    """Report that the engine is gone and takes no more requests."""


class Core(Protocol):
    """Take requests and calls to all workers; ``open`` blocks until the model is loaded."""

    restartable: bool

    def open(self) -> None:
        """Load the model; raises what vLLM raises."""
        ...

    @property
    def dead(self) -> bool:
        """Tell whether the engine is gone though nobody closed it."""
        ...

    @property
    def kv_tokens(self) -> int:
        """Return how many tokens the key-value memory holds."""
        ...

    def submit(
        self, request_id: str, prompt: Any, params: SamplingParams, lora: Any = None
    ) -> AsyncGenerator[Any, None]:
        """Stream vLLM's RequestOutput; closing the stream frees the slot. Raises CoreDied.

        ``lora`` is a LoRARequest of vLLM, for comparison with it.
        """
        ...

    async def call(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every worker between two steps and return every answer. Raises CoreDied."""
        ...

    def close(self) -> None:
        """Stop; returns when the thread or process is gone."""
        ...
