"""The engine against the plain computation: same tokens, same log probabilities, whatever else runs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
import torch

from adapter_store.errors import EngineBusy, InputError, NotFoundError, UnavailableError
from server.engine.protocol import EngineStats
from server.engine.transformers_engine import TransformersEngine
from tests.unit.server.engine.world import World, collect

QUESTIONS = ["What is shown?", "Which digit is it? Answer with one word.", "yes?", "the color " * 9]


async def until(engine: TransformersEngine, reached: Callable[[EngineStats], bool]) -> None:
    """Wait until the engine's counters say so, for as long as a loaded machine may need."""
    for _ in range(5000):
        if reached(engine.stats()):
            return
        await asyncio.sleep(0.002)
    raise AssertionError(f"not reached: {engine.stats()}")


async def settle(engine: TransformersEngine) -> None:
    await until(engine, lambda stats: stats.running == stats.waiting == 0)


async def test_base_answers_equal_generate(world: World, engine: TransformersEngine) -> None:
    request = world.request("one", max_tokens=16)
    answer = await collect(engine.generate(request))
    model = world.oracle.model
    image = world.features[0].embeds
    ids = torch.tensor([list(request.input_ids)])
    embeds = model.get_input_embeddings()(ids).clone()
    embeds[ids == world.base.image_token_id] = image
    expected = model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=16,
        min_new_tokens=16,
        do_sample=False,
        eos_token_id=None,
    )
    assert answer.tokens == expected[0].tolist()
    assert answer.last.finish_reason == "length"
    assert answer.last.prompt_tokens == len(request.input_ids)
    assert answer.last.completion_tokens == 16


@pytest.mark.parametrize("span", ["after_image", "all"])
async def test_sixteen_mixes_in_one_batch_equal_one_at_a_time(
    world: World, make_engine: Callable[..., TransformersEngine], span: str
) -> None:
    engine = make_engine(max_batch=16, mixed_prefill_tokens=40)
    states = {"v1": world.state(1), "v2": world.state(2)}
    for name, state in states.items():
        await engine.stage(name, state)
    requests = []
    for index in range(16):
        version = "base" if index % 5 == 4 else f"v{index % 2 + 1}"
        c = None if version == "base" else world.coefficients(index)
        requests.append(
            world.request(
                str(index),
                QUESTIONS[index % 4],
                picture=index % 5 if index % 7 else None,
                version=version,
                c=c,
                span=span,
                max_tokens=4 + index % 9,
            )
        )
    order = random.Random(0)

    async def ask(index: int) -> object:
        await asyncio.sleep(order.random() * 0.15)
        return await collect(engine.generate(requests[index]))

    answers = await asyncio.gather(*(ask(index) for index in range(16)))
    for request, answer in zip(requests, answers, strict=True):
        adapted = None
        if request.coefficients is not None:
            adapted = world.oracle.adapted(states[request.version], request.coefficients)
        tokens, logprobs = world.oracle.answer(request, request.sampling.max_tokens or 0, adapted)
        assert answer.tokens == tokens, request.request_id
        torch.testing.assert_close(torch.tensor(answer.logprobs), torch.tensor(logprobs), atol=1e-4, rtol=0)
    assert engine.stats().failed_requests_total == 0
    assert set(engine.loaded().values()) == {0}


async def test_zero_coefficients_are_the_base_bit_for_bit(world: World, engine: TransformersEngine) -> None:
    await engine.stage("v1", world.state(1))
    plain = await collect(engine.generate(world.request("a")))
    zero = await collect(engine.generate(world.request("b", version="v1", c=torch.zeros(16))))
    adapted = await collect(engine.generate(world.request("c", version="v1", c=world.coefficients(1))))
    assert plain.logprobs == zero.logprobs
    assert adapted.logprobs != plain.logprobs


async def test_prefix_hit_equals_miss_and_pictures_never_mix(
    world: World, make_engine: Callable[..., TransformersEngine]
) -> None:
    state = world.state(1)
    cold, warm = make_engine(prefix_cache_bytes=0), make_engine()
    for engine in (cold, warm):
        await engine.stage("v1", state)
    for index in range(6):
        request = world.request("x", picture=index % 2, version="v1", c=world.coefficients(index))
        miss = await collect(cold.generate(request))
        hit = await collect(warm.generate(request))
        assert miss.tokens == hit.tokens
        torch.testing.assert_close(torch.tensor(miss.logprobs), torch.tensor(hit.logprobs), atol=1e-5, rtol=0)
        assert miss.last.cached_tokens == 0
        assert hit.last.cached_tokens == (0 if index < 2 else request.gate_start)
    assert warm.stats().prefix_hits_total == 4
    assert cold.stats().prefix_hits_total == 0
    assert 0 < warm.stats().prefix_cache_bytes <= 128 * 2**20


async def test_the_same_new_picture_is_computed_once(world: World, engine: TransformersEngine) -> None:
    requests = [world.request(str(index), QUESTIONS[index % 3], picture=3) for index in range(8)]
    answers = await asyncio.gather(*(collect(engine.generate(request)) for request in requests))
    assert engine.stats().prefix_misses_total == 1
    for request, answer in zip(requests, answers, strict=True):
        assert answer.tokens == world.oracle.answer(request, 8)[0]


async def test_long_prompts_in_pieces_do_not_change_the_answer(
    world: World, make_engine: Callable[..., TransformersEngine]
) -> None:
    engine = make_engine(prefill_tokens=7, mixed_prefill_tokens=5, max_batch=3)
    requests = [world.request(str(i), "blue horse " * (4 * i + 1), picture=i) for i in range(5)]
    answers = await asyncio.gather(*(collect(engine.generate(request)) for request in requests))
    for request, answer in zip(requests, answers, strict=True):
        assert answer.tokens == world.oracle.answer(request, 8)[0]


async def test_a_request_finishes_on_the_version_it_began_with(
    world: World, engine: TransformersEngine
) -> None:
    states = {name: world.state(seed) for seed, name in enumerate(("v1", "v2", "v3"))}
    await engine.stage("v1", states["v1"])
    await engine.stage("v2", states["v2"])
    long = world.request("long", version="v1", c=world.coefficients(5), max_tokens=300)
    stream = engine.generate(long)
    first = await anext(stream)
    with pytest.raises(UnavailableError, match="release one"):
        await engine.stage("v3", states["v3"])
    engine.release("v1")
    swap = asyncio.create_task(engine.stage("v3", states["v3"]))
    await asyncio.sleep(0.02)
    assert not swap.done()
    assert engine.loaded()["v1"] == 1
    with pytest.raises(NotFoundError):
        await anext(engine.generate(world.request("late", version="v1", c=world.coefficients(5))))
    rest = await collect(stream)
    await swap
    assert set(engine.loaded()) == {"base", "v2", "v3"}
    adapted = world.oracle.adapted(states["v1"], long.coefficients)
    tokens, _ = world.oracle.answer(long, 300, adapted)
    assert [*first.token_ids, *rest.tokens] == tokens
    fresh = world.request("fresh", version="v3", c=world.coefficients(5))
    answer = await collect(engine.generate(fresh))
    adapted = world.oracle.adapted(states["v3"], fresh.coefficients)
    assert answer.tokens == world.oracle.answer(fresh, 8, adapted)[0]


async def test_a_larger_state_takes_over_a_smaller_bank(world: World, engine: TransformersEngine) -> None:
    await engine.stage("v1", world.state(1, tasks=1))
    engine.release("v1")
    await engine.stage("v2", world.state(2, tasks=1))
    engine.release("v1")
    state = world.state(3, tasks=3)
    await engine.stage("v3", state)
    assert set(engine.loaded()) == {"base", "v2", "v3"}
    request = world.request("big", version="v3", c=world.coefficients(1, 24))
    answer = await collect(engine.generate(request))
    assert (
        answer.tokens == world.oracle.answer(request, 8, world.oracle.adapted(state, request.coefficients))[0]
    )


async def test_staging_a_loaded_version_again_keeps_it(world: World, engine: TransformersEngine) -> None:
    state = world.state(1)
    await asyncio.gather(engine.stage("v1", state), engine.stage("v1", state))
    engine.release("v1")
    await engine.stage("v1", state)
    await engine.stage("v2", state)
    with pytest.raises(UnavailableError):
        await engine.stage("v3", state)
    assert engine.loaded() == {"base": 0, "v1": 0, "v2": 0}


async def test_leaving_frees_the_slot_within_one_step(world: World, engine: TransformersEngine) -> None:
    stream = engine.generate(world.request("gone", max_tokens=400))
    await anext(stream)
    assert engine.stats().running == 1
    steps = engine.stats().steps_total
    await stream.aclose()  # type: ignore[attr-defined]
    await settle(engine)
    assert engine.stats().steps_total - steps < 200
    assert engine.loaded() == {"base": 0}
    task = asyncio.create_task(collect(engine.generate(world.request("cancelled", max_tokens=400))))
    await until(engine, lambda stats: stats.running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settle(engine)


async def test_full_line_refuses_and_recovers(
    world: World, make_engine: Callable[..., TransformersEngine]
) -> None:
    engine = make_engine(max_batch=1, max_waiting=2)
    running = engine.generate(world.request("running", max_tokens=450))
    await anext(running)
    waiting = [asyncio.create_task(collect(engine.generate(world.request(f"w{i}")))) for i in range(2)]
    await until(engine, lambda stats: stats.waiting == 2)
    with pytest.raises(EngineBusy):
        await anext(engine.generate(world.request("one too many")))
    await running.aclose()  # type: ignore[attr-defined]
    answers = await asyncio.gather(*waiting)
    assert [answer.last.finish_reason for answer in answers] == ["length", "length"]


async def test_stop_strings_are_never_shown(world: World, engine: TransformersEngine) -> None:
    free = await collect(engine.generate(world.request("free", max_tokens=60)))
    text = free.text
    assert len(text) > 12
    stop = text[5:9]
    cut = await collect(engine.generate(world.request("cut", max_tokens=60, stop=(stop, "not in there"))))
    assert cut.text == text[: text.index(stop)]
    assert cut.last.finish_reason == "stop"
    assert cut.last.completion_tokens < 60


async def test_seeds_make_sampling_repeatable(world: World, engine: TransformersEngine) -> None:
    settings = {"temperature": 1.3, "top_p": 0.95, "max_tokens": 12}
    seeds = [1, 1, 2, 2, 3, 3]
    answers = await asyncio.gather(
        *(collect(engine.generate(world.request(str(i), seed=s, **settings))) for i, s in enumerate(seeds))
    )
    tokens = [tuple(answer.tokens) for answer in answers]
    assert tokens[0] == tokens[1]
    assert tokens[2] == tokens[3]
    assert len(set(tokens)) == 3
    unseeded = await asyncio.gather(
        *(collect(engine.generate(world.request(f"u{i}", **settings))) for i in range(2))
    )
    assert unseeded[0].tokens != unseeded[1].tokens


async def test_end_token_stops_and_is_not_shown(world: World, engine: TransformersEngine) -> None:
    free = await collect(engine.generate(world.request("free", max_tokens=40)))
    assert world.base.tokenizer.eos_token_id in engine._end_ids
    end = free.tokens[7]
    place = free.tokens.index(end)
    engine._end_ids = frozenset({end})
    ended = await collect(engine.generate(world.request("ended", max_tokens=40, ignore_eos=False)))
    assert ended.tokens == free.tokens[:place]
    assert ended.last.finish_reason == "stop"
    assert ended.last.completion_tokens == place + 1
    assert free.text.startswith(ended.text)
    ignoring = await collect(engine.generate(world.request("ignoring", max_tokens=40)))
    assert ignoring.tokens == free.tokens


async def test_faulty_requests_are_refused(world: World, engine: TransformersEngine) -> None:
    await engine.stage("v1", world.state(1))
    faults: list[tuple[dict[str, object], type[Exception], str]] = [
        ({"question": "word " * 400}, InputError, "shorten"),
        ({"version": "v9"}, NotFoundError, "v9"),
        ({"version": "v1", "c": torch.ones(3)}, InputError, "16 coefficients"),
        ({"version": "v1", "c": torch.full((16,), float("nan"))}, InputError, "finite"),
        ({"temperature": float("nan")}, InputError, "temperature"),
        ({"top_p": 0.0}, InputError, "top_p"),
        ({"max_tokens": 0}, InputError, "max_tokens"),
        ({"logprobs": 21}, InputError, "logprobs"),
        ({"stop": ("",)}, InputError, "stop"),
        ({"frequency_penalty": float("inf")}, InputError, "frequency_penalty"),
    ]
    for settings, error, words in faults:
        with pytest.raises(error, match=words):
            await anext(engine.generate(world.request("bad", **settings)))  # type: ignore[arg-type]
    good = world.request("good")
    marked = type(good)("mark", [*good.input_ids, world.base.image_token_id], good.images)
    with pytest.raises(InputError, match="placeholders"):
        await anext(engine.generate(marked))
    assert set(engine.loaded().values()) == {0}
    assert (await collect(engine.generate(good))).last.finish_reason == "length"


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
    await asyncio.gather(*(collect(engine.generate(world.request(str(i), max_tokens=100))) for i in range(9)))
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
    checked: list[tuple[object, object]] = []

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
        tokens, _ = world.oracle.answer(request, request.sampling.max_tokens, adapted[key])
        assert answer.tokens == tokens
    assert len(checked) == 56
    await settle(engine)
    assert set(engine.loaded().values()) == {0}
