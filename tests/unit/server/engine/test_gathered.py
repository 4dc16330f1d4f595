"""Requests to a pool too wide to be computed whole: the same answers, from the increments they touch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import torch

from server.engine.banks import BankSlot, spread
from server.engine.gathered import gate_of_rows, touched
from server.engine.transformers_engine import TransformersEngine
from tests.unit.server.engine.world import QUESTIONS, World, check_staggered, collect, settle

TASKS = 24
ROWS = 8 * TASKS
"""192 increments of rank 8: total rank 1,536."""


def sparse(seed: int, count: int, rows: int = ROWS) -> torch.Tensor:
    """Give coefficients of ``count`` increments."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.zeros(rows)
    c[torch.randperm(rows, generator=generator)[:count]] = torch.rand(count, generator=generator) + 0.1
    return c / c.sum()


async def test_dense_gathered_and_base_rows_of_two_versions_in_one_batch(
    world: World, make_engine: Callable[..., TransformersEngine]
) -> None:
    """Hold I2, I3 and I6 where some requests touch 5 increments, some 100, and some share theirs."""
    engine = make_engine(max_batch=16, mixed_prefill_tokens=40, dense_rank=64, banks=3)
    states = {"v1": world.state(1, TASKS), "v2": world.state(2, TASKS), "small": world.state(3, tasks=1)}
    for name, state in states.items():
        await engine.stage(name, state)
    requests = []
    for index in range(20):
        version = ("v1", "v2", "base", "small", "v1")[index % 5]
        c = {"base": None, "small": sparse(index, 4, 8)}.get(version, sparse(index % 7, 5))
        if index % 5 == 4:
            c = sparse(index, 100) if index % 2 else sparse(0, 5)
        requests.append(
            world.request(
                str(index), QUESTIONS[index % 4], picture=index % 5, version=version, c=c,
                span="all" if index % 3 == 0 else "after_image", max_tokens=4 + index % 9,
            )
        )  # fmt: skip
    await check_staggered(world, engine, requests, states, seed=1)
    assert engine._runner.gatherer.nbytes == 0, "a request that has ended still holds its copy"


async def test_a_refilled_bank_is_gathered_anew(
    world: World, make_engine: Callable[..., TransformersEngine]
) -> None:
    engine = make_engine(dense_rank=64, banks=1)
    for seed, version in ((1, "v1"), (2, "v2"), (3, "v3")):
        state = world.state(seed, TASKS)
        for older in engine.loaded():
            engine.release(older)
        await engine.stage(version, state)
        request = world.request("a", version=version, c=sparse(0, 5))
        answer = await collect(engine.generate(request))
        wanted = world.oracle.answer(request, 8, world.oracle.adapted(state, request.coefficients))
        assert answer.tokens == wanted[0]
        torch.testing.assert_close(torch.tensor(answer.logprobs), torch.tensor(wanted[1]), atol=1e-4, rtol=0)
        await settle(engine)


async def test_zero_coefficients_stay_the_base_bit_for_bit_beside_gathered_rows(
    world: World, make_engine: Callable[..., TransformersEngine]
) -> None:
    engine = make_engine(dense_rank=64)
    await engine.stage("v1", world.state(1, TASKS))
    base = await collect(engine.generate(world.request("a")))
    zero = await collect(engine.generate(world.request("b", version="v1", c=torch.zeros(ROWS))))
    assert zero.logprobs == base.logprobs
    mixed, adapted = await asyncio.gather(
        collect(engine.generate(world.request("c", version="v1", c=torch.zeros(ROWS)))),
        collect(engine.generate(world.request("d", version="v1", c=sparse(1, 5)))),
    )
    torch.testing.assert_close(torch.tensor(mixed.logprobs), torch.tensor(base.logprobs), atol=1e-5, rtol=0)
    assert max(abs(a - b) for a, b in zip(adapted.logprobs, base.logprobs, strict=True)) > 1e-2


async def test_prompts_differ_where_only_the_touched_increments_do(
    world: World, make_engine: Callable[..., TransformersEngine]
) -> None:
    """The same weights on other increments must not find each other's keys and values."""
    engine = make_engine(dense_rank=64)
    state = world.state(1, TASKS)
    await engine.stage("v1", state)
    for row in (3, 150, 3):
        c = torch.zeros(ROWS)
        c[row] = 1.0
        request = world.request("x", "the color " * 20, version="v1", c=c)
        answer = await collect(engine.generate(request))
        wanted = world.oracle.answer(request, 8, world.oracle.adapted(state, c))
        assert answer.tokens == wanted[0]
        torch.testing.assert_close(torch.tensor(answer.logprobs), torch.tensor(wanted[1]), atol=1e-4, rtol=0)


async def test_requests_that_touch_the_same_share_one_copy(
    world: World, make_engine: Callable[..., TransformersEngine]
) -> None:
    engine = make_engine(dense_rank=64)
    await engine.stage("v1", world.state(1, TASKS))
    c = sparse(0, 5)
    streams = [engine.generate(world.request(str(n), version="v1", c=c * (1 + n))) for n in range(4)]
    for stream in streams:
        await anext(stream)
    shapes = engine.shapes["o_proj"]
    assert engine._runner.gatherer.nbytes == 5 * 8 * 4 * shapes[0] * (shapes[1] + shapes[2])
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]


def test_what_is_gathered_and_what_is_computed_whole() -> None:
    slot = BankSlot(version="v1", bank=object(), increments=ROWS, rank=8)  # type: ignore[arg-type]
    few, many = spread(slot, sparse(0, 5)), spread(slot, sparse(0, 25))
    assert few is not None
    rows = touched(slot, few, 64)
    assert rows is not None
    assert rows == tuple(sparse(0, 5).nonzero().flatten().tolist())
    assert torch.equal(gate_of_rows(few, rows, 8).view(5, 8)[:, 0], sparse(0, 5)[list(rows)])
    assert touched(slot, few, 8 * ROWS) is None, "a pool within the limit is computed whole"
    assert touched(slot, many, 512) is None, "an eighth of the pool is not worth a copy"
    wide = BankSlot(version="v1", bank=object(), increments=8 * ROWS, rank=8)  # type: ignore[arg-type]
    assert touched(wide, spread(wide, sparse(0, 64, 8 * ROWS)), 64) is not None
    assert touched(wide, spread(wide, sparse(0, 65, 8 * ROWS)), 64) is None, "a copy is bounded"
    assert touched(slot, None, 64) is None
