"""The engine when something goes wrong or much happens at once: faults, memory, aborts and swaps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
import torch

from adapter_store.errors import UnavailableError
from server.engine.detokenizer import TextStream
from server.engine.protocol import GenerationRequest
from server.engine.transformers_engine import TransformersEngine
from tests.unit.server.engine.world import QUESTIONS, Answer, World, collect, settle, until


async def test_answers_are_cut_to_the_context(
    world: World, make_engine: Callable[..., TransformersEngine]
) -> None:
    engine = make_engine(max_model_len=64)
    request = world.request("long", max_tokens=None)
    answer = await collect(engine.generate(request))
    assert len(request.input_ids) + len(answer.tokens) == 64
    assert answer.last.finish_reason == "length"


async def test_not_finite_output_fails_one_row_only(world: World, engine: TransformersEngine) -> None:
    await engine.stage("v1", world.state(1, scale=1e30))
    bad = world.request("bad", version="v1", c=torch.full((16,), 1e30), max_tokens=40)
    good = [world.request(str(i), picture=i, max_tokens=40) for i in range(3)]
    mixed = [good[0], bad, *good[1:]]
    answers = await asyncio.gather(*(collect(engine.generate(request)) for request in mixed))
    assert answers[1].last.finish_reason == "error"
    assert "not finite" in (answers[1].last.error or "")
    assert answers[1].last.not_finite
    for request, answer in zip(good, [answers[0], *answers[2:]], strict=True):
        assert answer.tokens == world.oracle.answer(request, 40)[0]
    again = [world.request(str(i), picture=i) for i in range(4)]
    answers = await asyncio.gather(*(collect(engine.generate(request)) for request in again))
    assert {answer.last.finish_reason for answer in answers} == {"length"}


async def test_a_failing_step_ends_its_rows_and_the_engine_lives(
    world: World, make_engine: Callable[..., TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(prefix_cache_bytes=0)
    embed = engine._runner._embed

    def fail_for_bad(piece):  # type: ignore[no-untyped-def]
        if piece.sequence.request.request_id == "bad":
            raise RuntimeError("secret path /tmp/x")
        return embed(piece)

    monkeypatch.setattr(engine._runner, "_embed", fail_for_bad)
    names = ["a", "bad", "b"]
    answers = await asyncio.gather(*(collect(engine.generate(world.request(name))) for name in names))
    assert [answer.last.finish_reason for answer in answers] == ["length", "error", "length"]
    assert "RuntimeError" in (answers[1].last.error or "")
    assert "secret" not in (answers[1].last.error or "")
    assert not answers[1].last.not_finite
    assert answers[0].tokens == answers[2].tokens == world.oracle.answer(world.request("a"), 8)[0]

    monkeypatch.setattr(engine._runner, "decode", lambda rows: 1 / 0)
    broken = await collect(engine.generate(world.request("a")))
    assert broken.last.finish_reason == "error"
    monkeypatch.undo()
    monkeypatch.setattr(engine._sampler, "pick", lambda logits, rows: 1 / 0)
    broken = await collect(engine.generate(world.request("a")))
    assert broken.last.finish_reason == "error"
    monkeypatch.undo()
    assert (await collect(engine.generate(world.request("a")))).last.finish_reason == "length"
    assert engine.stats().alive
    assert engine.stats().failed_requests_total == 3
    assert engine.loaded() == {"base": 0}


async def test_a_token_that_cannot_be_told_ends_its_own_row_only(
    world: World, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = TextStream.push

    def stumble(stream: TextStream, token: int) -> str:
        if stream._stop == ("never",):
            raise RuntimeError("no text for this token")
        return push(stream, token)

    monkeypatch.setattr(TextStream, "push", stumble)
    requests = [world.request("a"), world.request("b", stop=("never",)), world.request("c", picture=1)]
    answers = await asyncio.gather(*(collect(engine.generate(request)) for request in requests))
    assert [answer.last.finish_reason for answer in answers] == ["length", "error", "length"]


async def test_what_overflows_for_one_version_is_no_other_requests_fault(
    world: World, engine: TransformersEngine
) -> None:
    huge = world.state(1)
    for down in huge.down.values():
        down.fill_(1e38)
    await engine.stage("huge", huge)
    await engine.stage("v2", world.state(2))
    c = torch.full((world.state(1).rows,), 0.1)
    requests = [world.request(v, version=v, c=c) for v in ("huge", "v2")]
    requests.append(world.request("base"))
    answers = await asyncio.gather(*(collect(engine.generate(request)) for request in requests))
    assert [answer.last.finish_reason for answer in answers] == ["error", "length", "length"]
    assert answers[0].last.not_finite


async def test_running_out_of_memory_fails_what_runs_and_no_more(
    world: World, make_engine: Callable[..., TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(max_batch=8)
    running = engine.generate(world.request("running", max_tokens=400))
    await anext(running)
    zeros = torch.zeros

    def refuse(*shape, **options):  # type: ignore[no-untyped-def]
        if isinstance(shape[0], tuple) and len(shape[0]) == 4 and shape[0][1] > 4:
            raise torch.OutOfMemoryError("no memory left")
        return zeros(*shape, **options)

    monkeypatch.setattr(torch, "zeros", refuse)
    many = [world.request(str(i), picture=i % 5) for i in range(5)]
    answers = await asyncio.gather(*(collect(engine.generate(request)) for request in many))
    reasons = [answer.last.finish_reason for answer in answers]
    assert (await collect(running)).last.finish_reason == "error"
    assert reasons.count("error") < 5
    monkeypatch.undo()
    again = await asyncio.gather(*(collect(engine.generate(request)) for request in many))
    assert {answer.last.finish_reason for answer in again} == {"length"}
    assert engine.stats().alive


async def test_a_dead_thread_is_seen(world: World, engine: TransformersEngine) -> None:
    def die() -> None:
        raise MemoryError("no more")

    engine._step = die  # type: ignore[method-assign]
    answer = await collect(engine.generate(world.request("last")))
    assert answer.last.finish_reason == "error"
    with pytest.raises(UnavailableError):
        await anext(engine.generate(world.request("too late")))
    assert not engine.stats().alive
    assert "MemoryError" in (engine.stats().error or "")


async def test_shutdown_ends_running_requests(world: World, engine: TransformersEngine) -> None:
    requests = [world.request(str(i), max_tokens=400) for i in range(3)]
    tasks = [asyncio.create_task(collect(engine.generate(request))) for request in requests]
    await until(engine, lambda stats: stats.running == 3)
    await asyncio.to_thread(engine.shutdown)
    answers = await asyncio.gather(*tasks)
    assert {answer.last.finish_reason for answer in answers} == {"abort"}
    with pytest.raises(UnavailableError):
        await anext(engine.generate(world.request("closed")))


async def test_memory_grows_with_use_and_is_given_back(
    world: World, make_engine: Callable[..., TransformersEngine]
) -> None:
    engine = make_engine(idle_seconds=0.1)
    assert engine.stats().kv_bytes == 0
    await asyncio.gather(*(collect(engine.generate(world.request(str(i), max_tokens=150))) for i in range(9)))
    stats = engine.stats()
    assert stats.kv_capacity_tokens == 16 * 256
    assert stats.kv_bytes == stats.kv_capacity_tokens * 3 * 2 * 2 * 16 * 4
    await until(engine, lambda stats: stats.kv_bytes == 0)
    assert (await collect(engine.generate(world.request("again")))).last.finish_reason == "length"


async def test_memory_stays_within_its_bound(
    world: World, make_engine: Callable[..., TransformersEngine]
) -> None:
    token_bytes = 3 * 2 * 2 * 16 * 4
    engine = make_engine(kv_bytes=3 * 128 * token_bytes)
    requests = [world.request(str(i), max_tokens=60) for i in range(8)]
    peak = 0
    tasks = [asyncio.create_task(collect(engine.generate(request))) for request in requests]
    while not all(task.done() for task in tasks):
        peak = max(peak, engine.stats().running)
        assert engine.stats().kv_bytes <= 3 * 128 * token_bytes
        await asyncio.sleep(0.002)
    assert peak == 3
    assert all(task.result().last.finish_reason == "length" for task in tasks)


async def test_a_hard_mix_of_arrivals_aborts_and_swaps(world: World, engine: TransformersEngine) -> None:
    states = {f"v{i}": world.state(i) for i in range(1, 5)}
    await engine.stage("v1", states["v1"])
    live = ["v1"]
    dice = random.Random(7)
    checked: list[tuple[GenerationRequest, Answer]] = []

    async def ask(index: int) -> None:
        await asyncio.sleep(dice.random() * 0.8)
        version = live[0]
        request = world.request(
            str(index),
            QUESTIONS[index % 4],
            picture=index % 5,
            version=version,
            c=world.coefficients(index % 6),
            max_tokens=3 + index % 20,
        )
        if index % 8 == 0:
            stream = engine.generate(request)
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            return
        checked.append((request, await collect(engine.generate(request))))

    async def publish() -> None:
        for old, new in (("v1", "v2"), ("v2", "v3"), ("v3", "v4")):
            await asyncio.sleep(0.2)
            await engine.stage(new, states[new])
            live[0] = new
            engine.release(old)

    await asyncio.gather(publish(), *(ask(index) for index in range(64)))
    adapted = {}
    for request, answer in checked:
        key = (request.version, int(request.request_id) % 6)
        if key not in adapted:
            adapted[key] = world.oracle.adapted(states[request.version], request.coefficients)
        tokens, _ = world.oracle.answer(request, request.sampling.max_tokens or 0, adapted[key])
        assert answer.tokens == tokens
    assert len(checked) == 56
    await settle(engine)
    assert set(engine.loaded().values()) == {0}
