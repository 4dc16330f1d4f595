"""One engine, one run, in its own process: ``python -m tests.vllm.scenario NAME OUT`` writes JSON to OUT.

vLLM changes the process it runs in (threads, memory binding, warnings): nothing of it happens in the tests'.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adapter_store.errors import StrataError
from adapter_store.increments import attach
from adapter_store.state import AdapterState
from server.engine.protocol import GenerationRequest
from server.engine.transformers_engine import TransformersEngine
from server.engine.vllm_client import VllmEngine, staging
from server.engine.vllm_client.state_file import StateFolder
from server.engine.vllm_plugin import worker
from server.engine.vllm_plugin.shared_memory import SHARED_MEMORY
from tests.unit.server.engine.world import World, collect
from tests.vllm.asking import QUESTIONS, TOKENS, ask, compare, expected, make_requests, make_world, options
from tests.vllm.oracles import embedded, native_lora

TARGETS = ("o_proj", "q_proj", "k_proj", "v_proj", "down_proj", "gate_proj", "up_proj")


async def parity(world: World) -> dict[str, Any]:
    """Two banks and the base in one batch, twice, beside the other engine; then a bank is refilled."""
    engine = VllmEngine(world.base, options())
    other = TransformersEngine(world.base, max_model_len=512, max_batch=64)
    states = {"v1": world.state(1), "v2": world.state(2)}
    requests = make_requests(world)
    wanted = expected(world, requests, states)
    for one in (engine, other):
        one.start()
        for version, state in states.items():
            await one.stage(version, state)
    first, again = await ask(engine, requests), await ask(engine, requests)
    theirs = await ask(other, requests)
    found = {
        "first": compare(first, wanted),
        "again": compare(again, wanted),
        "cached_tokens": sum(answer.last.cached_tokens for answer in again),
        "texts_equal": [a.text for a in first] == [b.text for b in theirs],
        "reasons_equal": [a.last.finish_reason for a in first] == [b.last.finish_reason for b in theirs],
        "swap": await swap_under_load(engine, world, states),
        "faults": await faults(engine, world),
        "inflight": engine.loaded(),
    }
    engine.shutdown()
    other.shutdown()
    return found


async def swap_under_load(
    engine: VllmEngine, world: World, states: dict[str, AdapterState]
) -> dict[str, Any]:
    """Refill a bank while requests of the other one run; some of them are given up half way."""
    requests = make_requests(world, 48, ["v1"])
    running = [asyncio.create_task(collect(engine.generate(request))) for request in requests[:32]]
    given_up = [asyncio.create_task(first_token(engine, request)) for request in requests[32:]]
    engine.release("v2")
    states["v3"] = world.state(3, tasks=6)  # wider than any before: the banks grow under way
    await engine.stage("v3", states["v3"])
    wide = world.coefficients(7, 48)
    late = [
        replace(request, coefficients=wide * (number % 5 + 1)) if request.version == "v3" else request
        for number, request in enumerate(make_requests(world, 16, ["v3"]))
    ]
    answers = [*await asyncio.gather(*running), *await ask(engine, late)]
    await asyncio.gather(*given_up)
    return compare(answers, expected(world, [*requests[:32], *late], states))


async def first_token(engine: VllmEngine, request: GenerationRequest) -> None:
    stream = engine.generate(request)
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]


async def faults(engine: VllmEngine, world: World) -> dict[str, str]:
    """Everything that must be refused, by name, with the class of the refusal."""
    bad = world.state(4)
    next(iter(bad.up.values()))[0, 0, 0, 0] = float("nan")
    other_base = AdapterState.empty("f" * 64, bad.shapes, 32).expand("task")
    layers, d_in, d_out = bad.shapes["o_proj"]
    fewer = AdapterState.empty(world.base.digest, {"o_proj": (layers - 1, d_in, d_out)}, 32).expand("task")
    engine.release("v1")
    found = {}
    for name, state in {
        "not finite": bad,
        "other base": other_base,
        "fewer layers": fewer,
    }.items():
        found[name] = await refusal(engine.stage(f"bad-{name}", state))
    for name, c in {"short": torch.ones(3), "nan": torch.full((48,), torch.nan)}.items():
        request = world.request(name, version="v3", c=c)
        found[f"{name} coefficients"] = await refusal(collect(engine.generate(request)))
    request = world.request("inf", version="v3", c=torch.full((48,), 3e38), logprobs=None)
    answer = await collect(engine.generate(request))
    found["overflow"] = f"{answer.last.finish_reason}, not finite {answer.last.not_finite}"
    found["changed file"] = await changed_file(engine, world)
    found["not in time"] = await not_in_time(engine, world)
    found["unknown version"] = await refusal(collect(engine.generate(world.request("x", version="v9"))))
    return found


async def changed_file(engine: VllmEngine, world: World) -> str:
    """Hand a worker a file that is not the one announced: it must not take it."""
    core = await engine._keeper.core()
    folder = StateFolder()
    file = folder.write(world.state(5), torch.float32)
    (outcome,) = map(Path, await core.call("pool_fill", 0, str(file.path), "0" * 64, file.rank))
    while not outcome.exists():  # noqa: ASYNC110  no event
        await asyncio.sleep(0.01)
    fault = json.loads(outcome.read_text())["fault"]
    folder.close()
    return "taken" if fault is None else "not taken"


async def not_in_time(engine: VllmEngine, world: World) -> str:
    """Give a worker no time at all to fill a bank, then enough."""
    usual, staging._FILL_SECONDS = staging._FILL_SECONDS, 0.0
    late = await refusal(engine.stage("v6", world.state(6)))
    staging._FILL_SECONDS = usual
    return f"{late}, then {await refusal(engine.stage('v6', world.state(6)))}"


async def refusal(attempt: Any, words: bool = False) -> str:
    try:
        await attempt
    except StrataError as error:
        return error.message if words else type(error).__name__
    return "accepted"


async def preemption(world: World) -> dict[str, Any]:
    """So little memory that running requests are thrown out and computed again."""
    engine = VllmEngine(world.base, options(kv_bytes=1536 << 10, max_waiting=16, pool_rank=64))
    states = {"v1": world.state(1, tasks=24), "v2": world.state(2)}  # of v1, requests touch a few of 192
    engine.start()
    for version, state in states.items():
        await engine.stage(version, state)
    scheduler = engine._keeper._up._engine.engine_core.engine_core.scheduler  # type: ignore[union-attr]
    preempted: list[str] = []
    plain = scheduler._preempt_request
    scheduler._preempt_request = lambda request, *rest, **more: (
        preempted.append(request.request_id),
        plain(request, *rest, **more),
    )
    requests = [few_of_many(request) for request in make_requests(world)]
    asked = asyncio.create_task(ask(engine, requests))
    while engine.stats().running + engine.stats().waiting < len(requests):  # noqa: ASYNC110  no event
        await asyncio.sleep(0)
    more = (refusal(collect(engine.generate(world.request(f"more{n}", max_tokens=64)))) for n in range(24))
    crowd = await asyncio.gather(*more)
    answers = await asked
    found = {"preempted": len(preempted), "first": compare(answers, expected(world, requests, states))}
    engine.shutdown()
    return {**found, "crowd": {name: crowd.count(name) for name in set(crowd)}}


def few_of_many(request: GenerationRequest) -> GenerationRequest:
    """Give a request of the large pool coefficients on four increments, another four for every third."""
    if request.version != "v1":
        return request
    number = int(request.request_id[1:])
    c = torch.zeros(192)
    c[[3 + number % 3, 77, 120, 191 - number % 3]] = torch.tensor([0.4, 0.3, 0.2, 0.1]) * (1 + number % 7)
    return replace(request, coefficients=c)


async def process(world: World) -> dict[str, Any]:
    """The engine's own process is killed: clean errors, 503, and the same answers a little later."""
    engine = VllmEngine(world.base, options(own_process=True))
    states = {"v1": world.state(1), "v2": world.state(2)}
    engine.start()
    for version, state in states.items():
        await engine.stage(version, state)
    requests = make_requests(world, 32)
    wanted = expected(world, requests, states)
    found: dict[str, Any] = {"first": compare(await ask(engine, requests), wanted)}
    running = [
        asyncio.create_task(collect(engine.generate(world.request(f"long{n}", max_tokens=400))))
        for n in range(4)
    ]
    while engine.stats().running < 4:  # noqa: ASYNC110  the count has no event
        await asyncio.sleep(0.01)
    lost = next(index for index, state in engine._states.items() if state is states["v2"])
    engine._states[lost] = replace(states["v2"], up={"o_proj": states["v2"].up["o_proj"] * torch.nan})
    os.kill(engine_pid(), signal.SIGKILL)
    found["broken_off"] = sorted(
        {str(answer.last.finish_reason) for answer in await asyncio.gather(*running)}
    )
    engine.release("v2")
    staging = await refusal(engine.stage("v3", world.state(3)))
    found["staged_while_down"] = staging
    found["while_down"] = await refusal(collect(engine.generate(requests[0])))
    found["alive_while_down"] = engine.stats().alive
    for _ in range(600):
        if engine.stats().alive and await refusal(collect(engine.generate(requests[0]))) == "accepted":
            break
        await asyncio.sleep(0.2)
    found["came_back"] = sorted(engine.loaded())
    await engine.stage("v2", states["v2"])
    found["after"] = compare(await ask(engine, requests), wanted)
    found["inflight"] = engine.loaded()
    engine.shutdown()
    return found


async def unhooked(world: World) -> dict[str, Any]:
    """A model runner that offers no hook: every answer would be the base's, so nothing may be served."""

    class NoHook:
        def __init__(self, *_: Any) -> None: ...

    worker.RunnerHook = NoHook  # type: ignore[misc, assignment]
    engine = VllmEngine(world.base, options())
    engine.start()
    staged = await refusal(engine.stage("v1", world.state(1)), words=True)
    asked = await refusal(collect(engine.generate(world.request("r"))), words=True)
    engine.shutdown()
    return {"staged": staged, "asked": asked}


def engine_pid() -> int:
    """Return the pid of this process's engine, its child of that name."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    return next(int(line.split()[0]) for line in listed.stdout.splitlines() if "EngineCore" in line)


async def targets(world: World, **changed: Any) -> dict[str, Any]:
    """Linears that vLLM fuses or splits, under whatever runner and parallelism the environment asks for."""
    attached = attach(world.base.model, TARGETS)
    states = {}
    for seed, version in enumerate(("v1", "v2"), start=1):
        generator = torch.Generator().manual_seed(seed)
        state = AdapterState.empty(world.base.digest, attached.shapes, 32).expand("a", generator=generator)
        for up in state.up.values():
            up.copy_(torch.randn(up.shape, generator=generator) * 0.3)
        states[version] = state
    attached.detach()
    engine = VllmEngine(world.base, options(targets=TARGETS, **changed))
    engine.start()
    for version, state in states.items():
        await engine.stage(version, state)
    requests = [
        world.request(
            f"r{n}", QUESTIONS[n % 4], version=f"v{n % 2 + 1}", c=world.coefficients(n, 8), max_tokens=TOKENS
        )
        for n in range(16)
    ]
    wanted = expected(world, requests, states)
    found: dict[str, Any] = {"first": compare(await ask(engine, requests), wanted)}
    found["runner"] = engine.described["runner"]
    found["fixed"] = engine.described["fixed"]
    bad = replace(states["v1"], up={name: up * torch.inf for name, up in states["v1"].up.items()})
    engine.release("v2")
    if engine.described["fixed"]:
        wide = AdapterState.empty(world.base.digest, states["v1"].shapes, 32).expand("a", rows=17)
        found["too wide"] = await refusal(engine.stage("wide", wide))
    found["bad bank"] = await refusal(engine.stage("bad", bad))
    found["beside a bad bank"] = compare(await ask(engine, requests[::2]), wanted[::2])
    engine.shutdown()
    return found


async def newer_runner(world: World) -> dict[str, Any]:
    return await targets(world, own_process=True)


async def newer_parity(world: World) -> dict[str, Any]:
    return await parity(world)


async def newer_preemption(world: World) -> dict[str, Any]:
    return await preemption(world)


async def tensor_parallel(world: World) -> dict[str, Any]:
    before = _segments()
    found = await targets(world, own_process=True, tensor_parallel_size=2)
    return {**found, "segments_left": sorted(_segments() - before)}


def _segments() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob("vllm_dist_*")}


async def compiled(world: World) -> dict[str, Any]:
    return await targets(world, own_process=True, eager=False)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        parity,
        preemption,
        process,
        unhooked,
        targets,
        newer_runner,
        newer_parity,
        newer_preemption,
        tensor_parallel,
        compiled,
        native_lora,
        embedded,
    )
}


def main(name: str, out: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kv_heads = 1 if name == "tensor_parallel" else 2  # two ranks that hold copies of one head
        world = make_world(Path(folder), kv_heads, stock=name == "compiled")
        found = asyncio.run(SCENARIOS[name](world))
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
