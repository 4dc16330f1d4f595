"""Encoding many pictures takes the memory of their embeddings once, and is refused before it cannot fit."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from PIL import Image

from adapter_store.datasets import Example, Turn
from adapter_store.rendering import Renderer
from adapter_store.vision import VisionEncoder
from tests.unit.trainer_worker.conftest import Parts
from trainer_worker.features import PICTURES_AT_ONCE, Featurizer
from trainer_worker.memory import available_bytes


def test_pictures_are_gathered_in_one_tensor(parts: Parts):
    count = 3 * PICTURES_AT_ONCE
    names = [str(number) for number in range(count)]
    examples = [Example(name, name, (Turn("Which color?", "red"),)) for name in names]
    vision = VisionEncoder(parts.base, cache_bytes=0)
    featurizer = Featurizer(renderer=Renderer(parts.base), vision=vision, queries=parts.queries)
    alone: list[int] = []

    def image(name: str) -> Image.Image:
        return Image.new("RGB", (28, 28), (int(name), 20, 30))

    shape = vision.encode([image("0")])[0].embeds.shape

    def count_features() -> None:
        alone.append(sum(type(one) is torch.Tensor and one.shape == shape for one in gc.get_objects()))

    before = sum(type(one) is torch.Tensor and one.shape == shape for one in gc.get_objects())
    encoded = featurizer.encode(examples, image, parts.untaught().routing, check=count_features)
    assert len(alone) == 3
    assert max(alone) - before < 2 * PICTURES_AT_ONCE
    assert encoded.pictures is not None
    assert encoded.pictures.device.type == "cpu"
    assert encoded.pictures.nbytes == count * featurizer.picture_bytes
    for number in (0, PICTURES_AT_ONCE, count - 1):
        assert torch.allclose(
            encoded.pictures[number], vision.encode([image(str(number))])[0].embeds, atol=1e-5
        )


def test_free_memory_is_the_least_of_machine_and_group(tmp_path: Path):
    assert available_bytes(tmp_path) is None
    group = tmp_path / "sys/fs/cgroup"
    for folder in (tmp_path / "proc", group):
        folder.mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    8000 kB\n")
    assert available_bytes(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("500000\n")
    assert available_bytes(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.stat").write_text("anon 200000\ninactive_file 100000\n")
    assert available_bytes(tmp_path) == 600_000
    real = available_bytes()
    assert real is None or real > 1 << 20
