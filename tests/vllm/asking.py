"""The tiny base with heads that vLLM takes, its requests, and what the plain computation answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from adapter_store.base import load_base
from adapter_store.rendering import Renderer
from adapter_store.state import AdapterState
from adapter_store.vision import VisionEncoder
from server.engine.protocol import GenerationRequest
from server.engine.vllm_client import VllmOptions
from tests.tiny_llava import build_tiny_llava
from tests.unit.server.engine.world import Answer, Oracle, World, collect

LONG = (
    "Which digit is it, and what else is shown in the picture? Answer with one word and say yes or no. " * 2
)
QUESTIONS = ["What is shown?", LONG, "Which digit is it? Answer with one word.", "the color " * 9]
TOKENS = 12


def make_world(folder: Path, kv_heads: int = 2, stock: bool = False) -> World:
    built = build_tiny_llava(folder, head_dim=32, kv_heads=kv_heads, stock=stock)
    base = load_base(built, dtype="float32", device="cpu")
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (5, 28, 28, 3), generator=generator, dtype=torch.uint8).numpy()
    features = VisionEncoder(base).encode([Image.fromarray(picture) for picture in pixels])
    return World(
        base, Renderer(base), features, Oracle(load_base(folder, dtype="float32", device="cpu").model)
    )


def make_requests(
    world: World, count: int = 64, versions: Sequence[str] = ("v1", "v2")
) -> list[GenerationRequest]:
    """Give ``count`` requests, each with coefficients of its own; every fifth asks the base."""
    requests = []
    for index in range(count):
        version = "base" if index % 5 == 4 else versions[index % len(versions)]
        requests.append(
            world.request(
                f"r{index}",
                QUESTIONS[index % 4],
                picture=index % 5 if index % 7 else None,
                version=version,
                c=None if version == "base" else world.coefficients(index),
                span=("after_image", "all")[index % 2],
                max_tokens=TOKENS,
            )
        )
    return requests


def expected(
    world: World, requests: Sequence[GenerationRequest], states: dict[str, AdapterState]
) -> list[tuple[list[int], list[float]]]:
    """Compute every answer alone, with ``W0 + sum c_n B_n A_n`` as plain weights."""
    found = []
    for request in requests:
        state = states.get(request.version)
        adapted = None if state is None else world.oracle.adapted(state, request.coefficients)
        found.append(world.oracle.answer(request, TOKENS, adapted))
    return found


def compare(answers: Sequence[Answer], wanted: Sequence[tuple[list[int], list[float]]]) -> dict[str, Any]:
    """Count equal answers and give the largest difference of a log probability among them."""
    pairs = list(zip(answers, wanted, strict=True))
    equal = [answer.tokens == tokens for answer, (tokens, _) in pairs]
    off = [
        abs(mine - theirs)
        for answer, (tokens, logprobs) in pairs
        for mine, theirs in zip(answer.logprobs, logprobs, strict=answer.tokens == tokens)
    ]
    assert all(map(math.isfinite, off))
    return {"asked": len(pairs), "equal": sum(equal), "off": max(off)}


async def ask(engine: Any, requests: Sequence[GenerationRequest]) -> list[Answer]:
    return list(await asyncio.gather(*(collect(engine.generate(request)) for request in requests)))


def options(**changed: Any) -> VllmOptions:
    usual = {"max_batch": 64, "max_model_len": 512, "pool_rank": 128, "block_size": 32, "step_tokens": 96}
    return VllmOptions(**{**usual, "kv_bytes": 32 << 20, "own_process": False, **changed})  # type: ignore[arg-type]
