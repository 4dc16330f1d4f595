"""A question's coefficients are its own, to the last bit, whoever asks at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapter_store.base.load import Base
from adapter_store.encoder import SentenceEncoder
from adapter_store.increments import attach
from adapter_store.rendering import Message, Renderer
from adapter_store.state import AdapterState, RoutingSettings
from adapter_store.vision import VisionEncoder
from server.retrieval import Question, Retriever

QUESTIONS = [f"{'What is shown here? ' * (n % 5 + 1)}{n}" for n in range(24)]


@pytest.fixture
def retriever(tiny_base: Path, loaded_tiny_base: Base) -> Iterator[Retriever]:
    sentences = SentenceEncoder(tiny_base / "sentence_encoder", cache_size=1)
    made = Retriever(loaded_tiny_base, Renderer(loaded_tiny_base), VisionEncoder(loaded_tiny_base), sentences)
    yield made
    made.close()


async def test_coefficients_do_not_depend_on_batch_mates(retriever: Retriever, loaded_tiny_base: Base):
    increments = attach(loaded_tiny_base.model, ("o_proj",))
    shapes = increments.shapes
    increments.detach()
    state = AdapterState.empty(loaded_tiny_base.digest, shapes, 32, routing=RoutingSettings("text"))
    for task in ("a", "b"):
        state = state.expand(task, generator=torch.Generator().manual_seed(len(task)))
    asked = [Question((Message("user", text, images=0),), (), state) for text in QUESTIONS]
    together = await asyncio.gather(*map(retriever.prepare, asked))
    for question, beside in zip(asked, together, strict=True):
        alone = await retriever.prepare(question)
        assert alone.coefficients is not None
        assert beside.coefficients is not None
        assert torch.equal(alone.coefficients, beside.coefficients)
        assert alone.query is not None
        assert beside.query is not None
        assert torch.equal(alone.query, beside.query)
