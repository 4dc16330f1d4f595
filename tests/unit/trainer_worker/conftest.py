"""The tiny base's parts, and a small set of colored pictures to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from adapter_store.base.load import Base
from adapter_store.datasets import Example, Turn
from adapter_store.encoder import SentenceEncoder
from adapter_store.increments import attach
from adapter_store.queries import QueryEncoder
from adapter_store.rendering import Renderer
from adapter_store.routing import intrinsic
from adapter_store.state import AdapterState, RoutingSettings, Span
from adapter_store.vision import VisionEncoder
from trainer_worker.features import Encoded, Featurizer
from trainer_worker.keys import align_keys
from trainer_worker.language import LanguageModel
from trainer_worker.prefixes import PrefixStore
from trainer_worker.replicas import Replicas

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


@dataclass(frozen=True, slots=True)
class Parts:
    """A loaded tiny base, ready to learn and to measure."""

    base: Base
    replicas: Replicas
    featurizer: Featurizer
    queries: QueryEncoder
    stop_ids: frozenset[int]

    def untaught(self, span: Span = "after_image") -> AdapterState:
        routing = RoutingSettings("text+image", top_m=2)
        width = self.queries.width(routing)
        return AdapterState.empty(self.base.digest, self.replicas.increments.shapes, width, 4, span, routing)

    def encode(self, question: str = "Which color?", count: int = 12, questions: int = 1) -> Encoded:
        pictures: dict[str, Image.Image] = {}
        examples: list[Example] = []
        for n in range(count):
            name = list(COLORS)[n % 3]
            red, green, blue = COLORS[name]
            pictures[str(n)] = Image.new("RGB", (28, 28), (red, green, (blue + 2 * n) % 256))
            examples += [
                Example(f"{n}-{q}", str(n), (Turn(question + "?" * q, name),)) for q in range(questions)
            ]
        return self.featurizer.encode(examples, pictures.__getitem__, self.untaught().routing)

    def store(self, encoded: Encoded, budget_bytes: int = 1 << 26, *, half: bool = False) -> PrefixStore:
        return PrefixStore(encoded.prefixes, encoded.pictures, budget_bytes=budget_bytes, half=half)

    def taught(
        self, state: AdapterState, task: str, encoded: Encoded, *, random_up: bool = False
    ) -> AdapterState:
        """Expand by a task with aligned keys and usage; with ``random_up`` its increments do something."""
        generator = torch.Generator().manual_seed(len(state.tasks))
        state = state.expand(task, 4, generator)
        rows = state.rows_of(task)
        aligned = align_keys(encoded.queries, 4, 2, generator)
        up = None
        if random_up:
            up = {
                name: torch.randn(tensor[:, rows].shape, generator=generator) * 0.3
                for name, tensor in state.up.items()
            }
        state = state.with_rows(rows, keys=aligned.keys, up=up)
        return state.with_usage(task, intrinsic(state, encoded.queries, among=rows).mean(dim=0))


@pytest.fixture(scope="module")
def parts(loaded_tiny_base: Base) -> Iterator[Parts]:
    """Return the tiny base's parts with increments attached to every output projection."""
    base = loaded_tiny_base
    renderer = Renderer(base)
    queries = QueryEncoder(SentenceEncoder(base.sentence_encoder), base.calibration)
    increments = attach(base.model, ("o_proj",))
    yield Parts(
        base,
        Replicas(LanguageModel.of(base.model, base.image_token_id), increments, count=2),
        Featurizer(renderer=renderer, vision=VisionEncoder(base), queries=queries),
        queries,
        renderer.stop_ids,
    )
    increments.detach()
