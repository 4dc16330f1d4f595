"""What the trainer records of a version, the gateway finds again, in every precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image

from adapter_store.base.load import Base, load_base
from adapter_store.datasets import Example, Turn
from adapter_store.encoder import SentenceEncoder
from adapter_store.errors import ProbeFailed
from adapter_store.increments import attach
from adapter_store.queries import QueryEncoder
from adapter_store.rendering import Renderer
from adapter_store.served import ServedPool, open_pool
from adapter_store.state import CLOSED_CONTEXT, AdapterState, RoutingSettings
from adapter_store.versions import Probe
from adapter_store.vision import VisionEncoder
from server.probing import Prober
from server.residency import Resident
from server.serving import _build, _tolerance
from server.settings import GatewaySettings
from trainer_worker.evaluate import Served, greedy_answer
from trainer_worker.features import Featurizer
from trainer_worker.keys import align_keys
from trainer_worker.language import LanguageModel
from trainer_worker.prefixes import PrefixStore
from trainer_worker.replicas import Replicas

QUESTIONS = ["Which color?", "What is shown in the picture?", "Which digit is it? Answer with one word."]
TOKENS = 8


def picture(number: int) -> Image.Image:
    pixels = torch.randint(0, 255, (28, 28, 3), generator=torch.Generator().manual_seed(number))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def earlier_tasks(state: AdapterState, count: int, generator: torch.Generator) -> AdapterState:
    """Return a state with ``count`` tasks more, with spectra as training leaves them."""
    fall = torch.exp(-torch.arange(state.rank) / 2.0)
    for number in range(count):
        state = state.expand(f"earlier-{number}", 4, generator, context_logit=CLOSED_CONTEXT)
        rows = state.rows_of(f"earlier-{number}")
        up = {
            name: torch.randn(old[:, rows].shape, generator=generator) * 0.3 * fall
            for name, old in state.up.items()
        }
        usage = torch.zeros(state.rows).index_fill_(0, rows, 0.25)
        state = state.with_rows(rows, up=up).with_usage(f"earlier-{number}", usage)
    return state


def recorded(base: Base, earlier: int = 0) -> tuple[AdapterState, list[Probe]]:
    """Return a state whose increments act, and the answers that a trainer records for it.

    The task draws on the first two of the ``earlier`` ones as its context.
    """
    increments = attach(base.model, ("o_proj",))
    replicas = Replicas(LanguageModel.of(base.model, base.image_token_id), increments)
    queries = QueryEncoder(SentenceEncoder(base.sentence_encoder), base.calibration)
    renderer = Renderer(base)
    featurizer = Featurizer(renderer=renderer, vision=VisionEncoder(base), queries=queries)
    routing = RoutingSettings("text+image", top_m=2)
    examples = [Example(str(n), str(n), (Turn(text, "red"),)) for n, text in enumerate(QUESTIONS)]
    encoded = featurizer.encode(examples, lambda name: picture(int(name)), routing)
    generator = torch.Generator().manual_seed(1)
    state = AdapterState.empty(
        base.digest, increments.shapes, queries.width(routing), 4, "after_image", routing
    )
    state = earlier_tasks(state, earlier, generator).expand("colors", 4, generator)
    rows = state.rows_of("colors")
    up = {name: torch.randn(old[:, rows].shape, generator=generator) * 0.3 for name, old in state.up.items()}
    if earlier:
        state = state.with_context("colors", torch.tensor([0.0, 0.0] + [CLOSED_CONTEXT] * (earlier - 2)))
    keys = align_keys(encoded.queries, 4, 2, generator).keys
    state = state.with_rows(state.rows_of("colors"), keys=keys, up=up)
    served = Served.of(state, increments)
    activate = served.activate(served.coefficients(encoded.queries))
    store = PrefixStore(encoded.prefixes, encoded.pictures, budget_bytes=1 << 26)
    probes = []
    for number, text in enumerate(QUESTIONS):
        ids, logprobs = greedy_answer(
            replicas.first,
            encoded.samples[number],
            store,
            activate,
            cached=True,
            end_ids=frozenset(renderer.stop_ids),
            max_tokens=TOKENS,
        )
        image = f"{number}.png"
        probes.append(
            Probe(question=text, image=image, answer_token_ids=tuple(ids), logprobs=tuple(logprobs))
        )
    increments.detach()
    return state, probes


def resident(probe: Probe, state: AdapterState, pool: ServedPool | None = None) -> Resident:
    return Resident("v1", state, cast("Any", SimpleNamespace(probe=probe)), 0, pool)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.02), ("bfloat16", 0.2)])
async def test_the_engine_gives_what_the_trainer_recorded(
    tiny_base: Path, tmp_path: Path, dtype: str, tolerance: float
):
    state, probes = recorded(load_base(tiny_base, dtype=dtype, device="cpu"))
    for number in range(len(QUESTIONS)):
        picture(number).save(tmp_path / f"{number}.png")
    base = load_base(tiny_base, dtype=dtype, device="cpu")
    settings = GatewaySettings(max_model_len=256, frozen_share=0)
    assert _tolerance(base, settings) == tolerance
    assert _tolerance(base, GatewaySettings(probe_tolerance=0.05)) == 0.05
    engine, retriever, end_ids, *_ = _build(base, settings)
    engine.start()
    try:
        await engine.stage("v1", state)
        prober = Prober(retriever, engine, end_ids=end_ids, tolerance=tolerance)
        for probe in probes:
            await prober(resident(probe, state), tmp_path)
            off = probe.model_copy(update={"logprobs": tuple(p - 2 * tolerance for p in probe.logprobs)})
            with pytest.raises(ProbeFailed, match="log probability 0"):
                await prober(resident(off, state), tmp_path)
    finally:
        engine.shutdown()
        retriever.close()


async def test_a_folded_pool_gives_what_the_trainer_recorded_with_exact_coefficients(
    tiny_base: Path, tmp_path: Path
) -> None:
    """Fold a context of two tasks among 30, gather what each question touches, and stay within 0.02."""
    state, probes = recorded(load_base(tiny_base, dtype="float32", device="cpu"), earlier=30)
    for number in range(len(QUESTIONS)):
        picture(number).save(tmp_path / f"{number}.png")
    base = load_base(tiny_base, dtype="float32", device="cpu")
    settings = GatewaySettings(max_model_len=256, dense_rank=32, frozen_share=0)
    engine, retriever, end_ids, *_ = _build(base, settings)
    engine.start()
    pool = open_pool(state, settings.dense_rank)
    assert set(pool.folds) == {30}
    without = dataclasses.replace(pool, brought=torch.zeros_like(pool.brought))  # type: ignore[arg-type]
    prober = Prober(retriever, engine, end_ids=end_ids, tolerance=_tolerance(base, settings))
    try:
        await engine.stage("v1", pool.staged())
        for probe in probes:
            await prober(resident(probe, state, pool), tmp_path)
        with pytest.raises(ProbeFailed):
            await prober(resident(probes[0], state, without), tmp_path)
    finally:
        engine.shutdown()
        retriever.close()
