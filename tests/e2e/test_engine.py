"""The engine on the embedded base: real weights, real pictures, against the library's ``generate``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch
from PIL import Image, ImageDraw

from adapter_store.base import ensure_embedded_base, load_base
from adapter_store.base.load import Base
from adapter_store.rendering import Message, Renderer
from adapter_store.vision import VisionEncoder
from server.engine.protocol import GenerationRequest, Sampling
from server.engine.transformers_engine import TransformersEngine

pytestmark = pytest.mark.base

QUESTIONS = ["What shape is it?", "What color is the shape?", "Is there a circle?", "Describe the picture."]


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(ensure_embedded_base(progress=False))


@pytest.fixture(scope="module")
def engine(base: Base) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(base, max_model_len=512)
    engine.start()
    yield engine
    engine.shutdown()


def picture(index: int) -> Image.Image:
    image = Image.new("RGB", (120, 120), "white")
    box = (20, 20, 60 + 10 * index, 60 + 10 * index)
    draw = ImageDraw.Draw(image)
    (draw.ellipse if index % 2 else draw.rectangle)(box, fill=("red", "blue", "green", "black")[index])
    return image


async def test_a_batch_of_pictures_answers_as_generate_does(base: Base, engine: TransformersEngine) -> None:
    renderer, vision = Renderer(base), VisionEncoder(base)
    features = vision.encode([picture(index) for index in range(4)])
    prompts = [renderer.prompt([Message("user", question, images=1)]) for question in QUESTIONS]

    async def ask(index: int) -> list[int]:
        request = GenerationRequest(
            str(index),
            prompts[index].input_ids,
            (features[index],),
            prompts[index].gate_start("after_image"),
            sampling=Sampling(max_tokens=12),
        )
        return [token async for chunk in engine.generate(request) for token in chunk.token_ids]

    answers = await asyncio.gather(*(ask(index) for index in range(4)))
    for index, answer in enumerate(answers):
        pixels = base.processor.image_processor(picture(index), return_tensors="pt").pixel_values
        ids = torch.tensor([prompts[index].input_ids])
        expected = base.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels.to(base.model.dtype),
            max_new_tokens=12,
            do_sample=False,
        )[0, ids.shape[1] :].tolist()
        assert answer == [token for token in expected if token not in renderer.stop_ids]


async def test_an_idle_engine_is_small(base: Base, engine: TransformersEngine) -> None:
    prompt = Renderer(base).prompt([Message("user", "Say hello.", images=0)])
    request = GenerationRequest("hello", prompt.input_ids, sampling=Sampling(max_tokens=16))
    text = "".join([chunk.text async for chunk in engine.generate(request)])
    assert text.strip()
    assert engine.stats().kv_bytes < 64 * 2**20
