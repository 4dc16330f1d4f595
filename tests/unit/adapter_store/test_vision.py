"""The vision encoder gives what LLaVA itself computes, and remembers within its bound."""

from __future__ import annotations

import dataclasses
import threading
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from adapter_store.base import load_base
from adapter_store.base.load import Base
from adapter_store.errors import BaseModelError
from adapter_store.images import image_digest
from adapter_store.rendering import Message, Renderer
from adapter_store.vision import VisionEncoder
from tests.tiny_llava import IMAGE_TOKENS, build_tiny_llava


def picture(seed: int, size: tuple[int, int] = (20, 30)) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (*size[::-1], 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="module")
def stock_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base whose eye is LLaVA-1.5's: CLIP, last layer but one, class token left out."""
    folder = build_tiny_llava(tmp_path_factory.mktemp("stock"), stock=True)
    return load_base(folder, dtype="float32", device="cpu")


@pytest.mark.parametrize(("layout", "layer", "tokens"), [("loaded_tiny_base", -1, 0), ("stock_base", -2, 1)])
def test_features_equal_llavas_own(
    request: pytest.FixtureRequest, layout: str, layer: int, tokens: int
) -> None:
    base: Base = request.getfixturevalue(layout)
    images = [picture(seed, (10 + seed, 40)) for seed in range(5)]
    features = VisionEncoder(base, batch_size=2).encode(images)
    pixels = base.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        outputs = base.model.get_image_features(pixel_values=pixels, return_dict=True)
        tower = base.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[layer]
    for index, feature in enumerate(features):
        assert feature.digest == image_digest(images[index])
        assert feature.embeds.shape == (IMAGE_TOKENS, 64)
        torch.testing.assert_close(feature.embeds, outputs.pooler_output[index], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(feature.pooled, tower[index, tokens:].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_spliced_features_give_llavas_logits(loaded_tiny_base: Base) -> None:
    base = loaded_tiny_base
    image = picture(3)
    prompt = Renderer(base).prompt([Message("user", "What is it?", 1)])
    ids = torch.tensor([prompt.input_ids])
    pixels = base.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    embeds = base.model.get_input_embeddings()(ids).clone()
    (start, end), features = prompt.image_spans[0], VisionEncoder(base).encode([image])[0]
    embeds[0, start:end] = features.embeds
    with torch.no_grad():
        wanted = base.model(input_ids=ids, pixel_values=pixels).logits
        found = base.model(inputs_embeds=embeds).logits
        blind = base.model(input_ids=ids, pixel_values=torch.zeros_like(pixels)).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(blind[0, -1], wanted[0, -1], atol=1e-3)


def test_equal_pictures_are_encoded_once_and_other_shapes_apart(loaded_tiny_base: Base) -> None:
    encoder = VisionEncoder(loaded_tiny_base)
    seen: list[int] = []
    run = encoder._run
    encoder._run = lambda images: seen.append(len(images)) or run(images)  # type: ignore[method-assign]
    wide = Image.new("RGB", (40, 10), (9, 9, 9))
    tall = Image.new("RGB", (10, 40), (9, 9, 9))
    first = encoder.encode([wide, tall, wide.copy()])
    assert encoder.encode([wide])[0] is first[0]
    assert first[0] is first[2]
    assert first[0].digest != first[1].digest
    assert seen == [2]


def test_the_cache_stays_within_its_bytes(loaded_tiny_base: Base) -> None:
    one = VisionEncoder(loaded_tiny_base).encode([picture(0)])[0].nbytes
    encoder = VisionEncoder(loaded_tiny_base, cache_bytes=3 * one)
    features = encoder.encode([picture(seed) for seed in range(5)])
    again = encoder.encode([picture(seed) for seed in (2, 3, 4)])
    assert all(new is old for new, old in zip(again, features[2:], strict=True))
    assert encoder.encode([picture(4)])[0] is features[4]
    assert encoder.encode([picture(0)])[0] is not features[0]
    tiny = VisionEncoder(loaded_tiny_base, cache_bytes=1)
    assert len(tiny.encode([picture(1), picture(1)])) == 2
    assert tiny.encode([picture(1)])[0] is not tiny.encode([picture(1)])[0]


def test_features_may_enter_a_training_graph(loaded_tiny_base: Base) -> None:
    features = VisionEncoder(loaded_tiny_base).encode([picture(1)])[0]
    weight = torch.ones(64, requires_grad=True)
    (features.embeds * weight).sum().backward()
    assert weight.grad is not None


def test_threads_share_one_encoding(loaded_tiny_base: Base) -> None:
    encoder = VisionEncoder(loaded_tiny_base)
    images = [picture(seed) for seed in range(4)]
    results: list[list] = [[] for _ in range(4)]

    def work(slot: int) -> None:
        results[slot] = encoder.encode(images)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert all(mine is first for mine, first in zip(result, results[0], strict=True))


def test_a_tiling_image_processor_is_refused(loaded_tiny_base: Base) -> None:
    def tiles(images, return_tensors):
        return {"pixel_values": torch.zeros(1, 4, 3, 28, 28)}

    base = dataclasses.replace(loaded_tiny_base, processor=SimpleNamespace(image_processor=tiles))
    with pytest.raises(BaseModelError, match="tiles"):
        VisionEncoder(base).encode([picture(0)])
