"""The tiny real base in an engine, and an oracle that computes the same answers the slow and plain way."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from adapter_store.base.load import Base
from adapter_store.increments import attach
from adapter_store.rendering import Message, Renderer
from adapter_store.state import AdapterState
from adapter_store.vision import ImageFeatures
from server.engine.protocol import Chunk, EngineStats, GenerationRequest, Sampling
from server.engine.transformers_engine import TransformersEngine

QUESTIONS = ["What is shown?", "Which digit is it? Answer with one word.", "yes?", "the color " * 9]


@dataclass(frozen=True)
class Oracle:
    """Compute answers one at a time with ``W0 + sum c_n B_n A_n`` as plain weights in an untouched copy."""

    model: Any

    def adapted(self, state: AdapterState, c: torch.Tensor | None) -> Any:
        assert c is not None
        model = copy.deepcopy(self.model)
        layers = model.model.language_model.layers
        for target in state.targets:
            for index, layer in enumerate(layers):
                part = "self_attn." if target in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp."
                linear = layer.get_submodule(part + target)
                delta = torch.einsum(
                    "n,nor,nri->oi",
                    c.double(),
                    state.up[target][index].double(),
                    state.down[target][index].double(),
                )
                linear.weight.data += delta.float()
        return model

    @torch.no_grad()
    def answer(
        self, request: GenerationRequest, count: int, adapted: Any = None
    ) -> tuple[list[int], list[float]]:
        """Give ``count`` greedy tokens and their log probabilities; before ``gate_start`` acts the base."""
        ids = torch.tensor([list(request.input_ids)])
        embeds = self.model.get_input_embeddings()(ids).clone()
        if request.images:
            pictures = torch.cat([image.embeds.reshape(-1, embeds.shape[-1]) for image in request.images])
            embeds[ids == self.model.config.image_token_id] = pictures
        cache = DynamicCache()
        start = request.gate_start if adapted is not None else 0
        if start:
            self._forward(self.model, embeds[:, :start], cache)
        model = adapted if adapted is not None else self.model
        logits = self._forward(model, embeds[:, start:], cache)
        tokens, logprobs = [], []
        for _ in range(count):
            distribution = torch.log_softmax(logits, -1)
            token = int(distribution.argmax())
            tokens.append(token)
            logprobs.append(float(distribution[token]))
            logits = self._forward(model, model.get_input_embeddings()(torch.tensor([[token]])), cache)
        return tokens, logprobs

    def _forward(self, model: Any, embeds: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        hidden = model.model.language_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        return model.lm_head(hidden.last_hidden_state[0, -1])


@dataclass(frozen=True)
class World:
    """Hold the base, its renderer and pictures, and make requests and states."""

    base: Base
    renderer: Renderer
    features: list[ImageFeatures]
    oracle: Oracle

    def request(
        self,
        name: str,
        question: str = "What is shown?",
        *,
        picture: int | None = 0,
        version: str = "base",
        c: torch.Tensor | None = None,
        span: str = "after_image",
        **sampling: object,
    ) -> GenerationRequest:
        images = () if picture is None else (self.features[picture],)
        prompt = self.renderer.prompt([Message("user", question, images=len(images))])
        settings = {"max_tokens": 8, "ignore_eos": True, "logprobs": 0} | sampling
        return GenerationRequest(
            request_id=name,
            input_ids=prompt.input_ids,
            images=images,
            gate_start=prompt.gate_start(span),  # type: ignore[arg-type]
            version=version,
            coefficients=c,
            sampling=Sampling(**settings),  # type: ignore[arg-type]
        )

    def state(self, seed: int, tasks: int = 2, scale: float = 0.5) -> AdapterState:
        """Give a random state whose increments really act."""
        generator = torch.Generator().manual_seed(seed)
        shapes = attach(self.base.model, ("o_proj",)).shapes
        state = AdapterState.empty(self.base.digest, shapes, 32)
        for task in range(tasks):
            state = state.expand(f"task-{task}", generator=generator)
        for up in state.up.values():
            up.copy_(torch.randn(up.shape, generator=generator) * scale)
        return state

    def coefficients(self, seed: int, count: int = 16) -> torch.Tensor:
        """Give a random sparse coefficient vector, as routing makes them."""
        generator = torch.Generator().manual_seed(seed)
        c = torch.rand(count, generator=generator)
        return torch.where(c >= c.topk(4).values.min(), c, torch.zeros(())) + 0.05


@dataclass
class Answer:
    """Gather what one request's chunks said."""

    text: str
    tokens: list[int]
    logprobs: list[float]
    last: Chunk
    chunks: list[Chunk]


async def collect(stream: AsyncIterator[Chunk]) -> Answer:
    """Read a stream to its end."""
    chunks = [chunk async for chunk in stream]
    return Answer(
        text="".join(chunk.text for chunk in chunks),
        tokens=[token for chunk in chunks for token in chunk.token_ids],
        logprobs=[entry.logprob for chunk in chunks for entry in chunk.logprobs or ()],
        last=chunks[-1],
        chunks=chunks,
    )


async def check_staggered(
    world: World,
    engine: TransformersEngine,
    requests: Sequence[GenerationRequest],
    states: Mapping[str, AdapterState],
    seed: int,
) -> None:
    """Ask all at random moments of 150 ms: every answer must be the oracle's, and nothing may stay behind."""
    order = random.Random(seed)

    async def ask(request: GenerationRequest) -> Answer:
        await asyncio.sleep(order.random() * 0.15)
        return await collect(engine.generate(request))

    answers = await asyncio.gather(*(ask(request) for request in requests))
    for request, answer in zip(requests, answers, strict=True):
        adapted = None
        if request.coefficients is not None:
            adapted = world.oracle.adapted(states[request.version], request.coefficients)
        tokens, logprobs = world.oracle.answer(request, request.sampling.max_tokens or 0, adapted)
        assert answer.tokens == tokens, request.request_id
        torch.testing.assert_close(torch.tensor(answer.logprobs), torch.tensor(logprobs), atol=1e-4, rtol=0)
    assert engine.stats().failed_requests_total == 0
    assert set(engine.loaded().values()) == {0}


async def until(engine: TransformersEngine, reached: Callable[[EngineStats], bool]) -> None:
    """Wait until the engine's counters say so, for as long as a loaded machine may need."""
    for _ in range(5000):
        if reached(engine.stats()):
            return
        await asyncio.sleep(0.002)
    raise AssertionError(f"not reached: {engine.stats()}")


async def settle(engine: TransformersEngine) -> None:
    await until(engine, lambda stats: stats.running == stats.waiting == 0)
