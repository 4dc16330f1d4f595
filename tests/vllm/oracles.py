"""Scenarios on other ground: vLLM's own LoRA as the second oracle, and the embedded base."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from adapter_store.base import ensure_embedded_base, load_base
from adapter_store.increments import attach
from adapter_store.rendering import Renderer
from adapter_store.settings import FROZEN_SHARE
from adapter_store.state import AdapterState
from adapter_store.vision import VisionEncoder
from server.engine.transformers_engine import TransformersEngine
from server.engine.vllm_client import VllmEngine
from tests.unit.server.engine.world import World
from tests.vllm.asking import QUESTIONS, TOKENS, ask, compare, expected, options


async def native_lora(world: World) -> dict[str, Any]:
    """vLLM's own LoRA, one exported adapter a request, must answer as our pool does: the second oracle."""
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.llm_engine import LLMEngine

    from adapter_store.lora.export import Origin, lora_files
    from server.engine.vllm_client.options import prepare_environment
    from server.engine.vllm_client.prompts import engine_prompt

    prepare_environment(options())
    state = world.state(1)
    paths = attach(world.base.model, ("o_proj",)).paths
    requests = [
        world.request(
            f"r{n}", QUESTIONS[n % 4], version="v1", c=world.coefficients(n), span="all", max_tokens=TOKENS
        )
        for n in range(4)
    ]
    engine = LLMEngine.from_engine_args(
        AsyncEngineArgs(
            model=str(world.base.path),
            dtype="float32",
            enforce_eager=True,
            max_model_len=512,
            kv_cache_memory_bytes=32 << 20,
            limit_mm_per_prompt={"image": 0},
            enable_mm_embeds=True,
            mm_processor_cache_gb=0,
            enable_lora=True,
            max_loras=4,
            max_lora_rank=128,
            disable_log_stats=True,
        )
    )
    origin = Origin(world.base.base_id, world.base.digest, "v1", None, "?")
    params = SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=0, ignore_eos=True, detokenize=False)
    for number, request in enumerate(requests):
        assert request.coefficients is not None
        folder = world.base.path / f"lora-{number}"
        folder.mkdir()
        for name, data in lora_files(state, request.coefficients, paths, origin).items():
            (folder / name).write_bytes(data)
        lora = LoRARequest(f"lora-{number}", number + 1, str(folder))
        prompt = engine_prompt(request, world.base.image_token_id, None)
        engine.add_request(request.request_id, prompt, params, lora_request=lora)
    found: dict[str, Any] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            found[output.request_id] = output.outputs[0]  # type: ignore[union-attr]
    wanted = expected(world, requests, {"v1": state})
    pairs = [(found[request.request_id], want) for request, want in zip(requests, wanted, strict=True)]
    off = [
        abs(entry[token].logprob - logprob)
        for mine, (_, logprobs) in pairs
        for token, entry, logprob in zip(mine.token_ids, mine.logprobs, logprobs, strict=True)
    ]
    equal = sum(list(mine.token_ids) == tokens for mine, (tokens, _) in pairs)
    return {"first": {"asked": len(pairs), "equal": equal, "off": max(off)}}


async def embedded(world: World) -> dict[str, Any]:
    """The embedded base, real pictures, increments on its upper layers: both engines answer alike."""
    base = load_base(ensure_embedded_base(progress=False), dtype="float32", device="cpu")
    colors = ("red", "blue", "green", "black")
    features = VisionEncoder(base).encode([Image.new("RGB", (120, 120), color) for color in colors])
    real = World(base, Renderer(base), features, world.oracle)
    shapes = attach(base.model, ("o_proj",), FROZEN_SHARE).shapes
    generator = torch.Generator().manual_seed(5)
    state = AdapterState.empty(base.digest, shapes, 384).expand("a", generator=generator).expand("b")
    for up in state.up.values():
        up.copy_(torch.randn(up.shape, generator=generator) * 0.3)
    asked = (
        "What color is it?",
        "Is there a circle?",
        "Describe the picture.",
        "What is the capital of France?",
    )
    requests = [
        real.request(
            f"r{n}", asked[n % 4], picture=n % 4, version=version, c=c, max_tokens=TOKENS, ignore_eos=False
        )
        for n in range(8)
        for version, c in (("base", None), ("v1", real.coefficients(n)))
    ]
    other = TransformersEngine(base, max_model_len=512, frozen_share=FROZEN_SHARE)
    engine = VllmEngine(base, options(frozen_share=FROZEN_SHARE, kv_bytes=128 << 20))
    answers = {}
    for one in (other, engine):
        one.start()
        await one.stage("v1", state)
        answers[one] = await ask(one, requests)
        one.shutdown()
    wanted = [(answer.tokens, answer.logprobs) for answer in answers[other]]
    pairs = zip(answers[engine][::2], answers[engine][1::2], strict=True)
    changed = sum(abs(plain.logprobs[0] - adapted.logprobs[0]) > 5e-4 for plain, adapted in pairs)
    return {"first": compare(answers[engine], wanted), "changed": changed}
