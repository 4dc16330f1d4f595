"""The requests that every system gets, and what they bring: pictures, questions, coefficients, adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from adapter_store.lora.export import Origin, lora_files
from adapter_store.rendering import Message, Renderer
from adapter_store.state import AdapterState, Shape
from adapter_store.vision import VisionEncoder
from server.engine.protocol import GenerationRequest, Sampling

if TYPE_CHECKING:
    from adapter_store.base.load import Base

QUESTIONS = (
    "What is shown in the picture? Answer with one word.",
    "Which color has the shape in the middle?",
    "Is there a circle?",
    "Describe the picture in one sentence.",
)
RANK = 8
SELECTED = 4
"""Increments with a coefficient in each request, as routing with top_m 4 gives them."""


def random_pool(digest: str, shapes: dict[str, Shape], total_rank: int, seed: int = 0) -> AdapterState:
    """Return a pool of ``total_rank`` / 8 increments of rank 8 that really acts."""
    generator = torch.Generator().manual_seed(seed)
    state = AdapterState.empty(digest, shapes, 384).expand(
        "benchmark", rows=total_rank // RANK, generator=generator
    )
    for up in state.up.values():
        up.copy_(torch.randn(up.shape, generator=generator) * 0.02)
    return state


def coefficients(count: int, rows: int, seed: int = 0) -> list[torch.Tensor]:
    """Return ``count`` different vectors ``[rows]``, each with four values that add up to one."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        c = torch.zeros(rows)
        c[torch.randperm(rows, generator=generator)[:SELECTED]] = (
            torch.rand(SELECTED, generator=generator) + 0.1
        )
        found.append(c / c.sum())
    return found


def write_loras(
    folder: Path,
    base: Base,
    state: AdapterState,
    vectors: Sequence[torch.Tensor],
    paths: dict[str, tuple[str, ...]],
) -> list[Path]:
    """Write for each vector the plain LoRA that acts as it does, and return the folders."""
    found = []
    for number, c in enumerate(vectors):
        target = folder / f"lora-{number}"
        target.mkdir(parents=True)
        origin = Origin(base.base_id, base.digest, "benchmark", None, "benchmark")
        for name, data in lora_files(state, c, paths, origin).items():
            (target / name).write_bytes(data)
        found.append(target)
    return found


@dataclass(slots=True)
class Workload:
    """Make the requests of a round: new pictures every time, so that no prompt is known already."""

    base: Base
    new_tokens: int
    vision: VisionEncoder
    renderer: Renderer

    @classmethod
    def for_base(cls, base: Base, new_tokens: int) -> Workload:
        """Prepare to make requests with ``new_tokens`` tokens of answer each."""
        return cls(base, new_tokens, VisionEncoder(base), Renderer(base))

    def requests(self, count: int, seed: int) -> list[GenerationRequest]:
        """Return ``count`` requests of the base, pictures encoded."""
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (count, 6, 6, 3), generator=generator, dtype=torch.uint8).numpy()
        features = self.vision.encode([Image.fromarray(picture).resize((84, 84)) for picture in pixels])
        found = []
        for number in range(count):
            prompt = self.renderer.prompt([Message("user", QUESTIONS[number % len(QUESTIONS)], images=1)])
            found.append(
                GenerationRequest(
                    request_id=f"{seed}-{number}",
                    input_ids=tuple(prompt.input_ids),
                    images=(features[number],),
                    gate_start=prompt.gate_start("after_image"),
                    sampling=Sampling(max_tokens=self.new_tokens, ignore_eos=True),
                )
            )
        return found
