"""Fixtures: the tiny real base, and engines that are shut down after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from adapter_store.base.load import load_base
from adapter_store.rendering import Renderer
from adapter_store.vision import VisionEncoder
from server.engine.transformers_engine import TransformersEngine
from tests.unit.server.engine.world import Oracle, World

PICTURES = 5


@pytest.fixture(scope="session")
def world(tiny_base: Path) -> World:
    base = load_base(tiny_base, dtype="float32")
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 255, (PICTURES, 28, 28, 3), generator=generator, dtype=torch.uint8).numpy()
    features = VisionEncoder(base).encode([Image.fromarray(picture) for picture in pixels])
    oracle = Oracle(load_base(tiny_base, dtype="float32").model)
    return World(base, Renderer(base), features, oracle)


@pytest.fixture
def make_engine(world: World) -> Iterator[Callable[..., TransformersEngine]]:
    engines: list[TransformersEngine] = []

    def make(**settings: object) -> TransformersEngine:
        merged = {"max_model_len": 512, **settings}
        engine = TransformersEngine(world.base, **merged)  # type: ignore[arg-type]
        engine.start()
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.shutdown()


@pytest.fixture
def engine(make_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    return make_engine()
