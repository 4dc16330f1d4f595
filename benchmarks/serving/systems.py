"""The systems that are measured: one engine process each, all driven through the same client."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from server.engine.protocol import GenerationRequest
from server.engine.vllm_client.options import VllmOptions, engine_args, prepare_environment
from server.engine.vllm_plugin.requests import Gated

if TYPE_CHECKING:
    from adapter_store.base.load import Base
    from adapter_store.state import AdapterState

_NUMBERS = itertools.count()


class System(Protocol):
    """Answer requests; ``name`` is how the tables call it."""

    name: str

    async def open(self) -> None:
        """Start, load what is needed and answer one request."""
        ...

    def ask(self, number: int, request: GenerationRequest) -> AsyncIterator[float]:
        """Answer the ``number``-th request of a round; yield the moment of each token, in seconds."""
        ...

    def close(self) -> None:
        """Stop."""
        ...


@dataclass(slots=True)
class VllmSystem:
    """An engine process of vLLM; what is adapted, and how, is up to the subclasses."""

    name: str
    base: Base
    options: VllmOptions
    core: Any = None

    async def open(self) -> None:
        """Start the engine process."""
        import asyncio

        from server.engine.vllm_client.cores import ProcessCore

        prepare_environment(self.options)
        self.core = ProcessCore(self.arguments())
        await asyncio.to_thread(self.core.open)
        await self.prepare()

    def arguments(self) -> Any:
        """Return vLLM's arguments for the bare base."""
        return replace(self.with_pool(), additional_config={}, worker_extension_cls="")

    def with_pool(self) -> Any:
        """Return vLLM's arguments as the gateway has them."""
        on_cpu = not torch.cuda.is_available()
        return engine_args(self.options, self.base.path, self.base.model.dtype, on_cpu=on_cpu)

    async def prepare(self) -> None:
        """Load what requests will need."""

    def gated(self, number: int, start: int) -> Gated | None:  # noqa: ARG002
        """Return what the ``number``-th request of a round brings, adapted from token ``start`` on."""
        return None

    def lora(self, number: int) -> Any:  # noqa: ARG002
        """Return the native LoRA of the ``number``-th request of a round."""
        return None

    async def ask(self, number: int, request: GenerationRequest) -> AsyncIterator[float]:
        """Answer; see ``System.ask``."""
        from server.engine.vllm_client.prompts import engine_prompt, sampling_params

        gated = self.gated(number, request.gate_start)
        prompt = engine_prompt(request, self.base.image_token_id, gated)
        limit = request.sampling.max_tokens or 1
        params = sampling_params(request.sampling, limit, frozenset(), gated)
        key = f"{request.request_id}-{next(_NUMBERS)}"
        stream = self.core.submit(key, prompt, params, self.lora(number))
        async for output in stream:
            moment = time.perf_counter()
            for _ in output.outputs[0].token_ids:
                yield moment

    def close(self) -> None:
        """Stop the engine process."""
        if self.core is not None:
            self.core.close()


@dataclass(slots=True)
class Pool(VllmSystem):
    """Strata's pool: every request its own coefficients; one bank for each state."""

    states: Sequence[AdapterState] = ()
    vectors: Sequence[torch.Tensor] = ()

    def arguments(self) -> Any:
        """Return vLLM's arguments with the pool."""
        return self.with_pool()

    async def prepare(self) -> None:
        """Fill the banks."""
        from server.engine.vllm_client.staging import fill
        from server.engine.vllm_client.state_file import StateFolder

        await self.core.call("pool_attach")
        folder = StateFolder()
        for bank, state in enumerate(self.states):
            await fill(self.core, bank, state, self.base.model.dtype, folder)
        folder.close()

    def gated(self, number: int, start: int) -> Gated | None:
        """Return another vector for every request, banks in turn."""
        bank = number % len(self.states)
        rank = self.states[bank].rank
        gate = self.vectors[number % len(self.vectors)].repeat_interleave(rank)
        return Gated(bank, gate, start, None, rank)


@dataclass(slots=True)
class NativeLora(VllmSystem):
    """vLLM's own LoRA: the same increments, composed into one adapter for each vector.

    ``targets`` None wraps every linear, as vLLM does by default.
    """

    folders: Sequence[Path] = ()
    rank: int = 32
    targets: tuple[str, ...] | None = None
    requests: list[Any] = field(default_factory=list)

    def arguments(self) -> Any:
        """Return vLLM's arguments with as many LoRA slots as there are adapters."""
        bare = VllmSystem.arguments(self)
        return replace(
            bare,
            enable_lora=True,
            max_loras=len(self.folders),
            max_lora_rank=self.rank,
            lora_target_modules=None if self.targets is None else list(self.targets),
        )

    async def prepare(self) -> None:
        """Load every adapter into its slot."""
        from vllm.lora.request import LoRARequest

        self.requests = [
            LoRARequest(folder.name, number + 1, str(folder)) for number, folder in enumerate(self.folders)
        ]
        for request in self.requests:
            await self.core._open_llm.add_lora(request)

    def lora(self, number: int) -> Any:
        """Return the adapters in turn."""
        return self.requests[number % len(self.requests)]
