"""The engine against the plain computation: same tokens, same log probabilities, whatever else runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
import torch

from adapter_store.errors import EngineBusy, InputError, NotFoundError, UnavailableError
from server.engine.sequence import Sequence
from server.engine.transformers_engine import TransformersEngine
from tests.unit.server.engine.world import QUESTIONS, World, check_staggered, collect, settle, until


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
    await check_staggered(world, engine, requests, states, seed=0)


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


async def test_leaving_frees_the_slot_within_one_step(
    world: World, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, decoding, go_on = engine._runner.decode, threading.Event(), threading.Event()

    def held(rows: list[Sequence]) -> torch.Tensor:
        decoding.set()
        assert go_on.wait(60)
        return decode(rows)

    monkeypatch.setattr(engine._runner, "decode", held)
    stream = engine.generate(world.request("gone", max_tokens=400))
    await anext(stream)
    assert await asyncio.to_thread(decoding.wait, 60)
    assert engine.stats().running == 1
    steps = engine.stats().steps_total
    await stream.aclose()  # type: ignore[attr-defined]
    go_on.set()
    await settle(engine)
    assert engine.stats().steps_total - steps == 1, "only the step that ran when the client left"
    assert engine.loaded() == {"base": 0}
    go_on.clear()
    decoding.clear()
    task = asyncio.create_task(collect(engine.generate(world.request("cancelled", max_tokens=400))))
    assert await asyncio.to_thread(decoding.wait, 60)
    task.cancel()
    go_on.set()
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
        ({"question": "word " * 4000}, InputError, "shorten"),
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
