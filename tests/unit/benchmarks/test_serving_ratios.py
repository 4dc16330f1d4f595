"""The arithmetic of benchmarks.serving: floors, ratios within a repeat, loads in turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from adapter_store.base.load import Base
from benchmarks.serving.floor import base_multiply_adds, floor_ratio, pool_multiply_adds
from benchmarks.serving.report import BASE, as_markdown, ratios
from benchmarks.serving.rounds import Load, interleaved, open_load
from benchmarks.serving.workload import coefficients


def load(system: str, repeat: int, tokens_per_second: float, concurrent: int = 32) -> Load:
    return Load(system, concurrent, repeat, tokens_per_second, 0.5, 0.1)


def test_ratios_are_taken_within_a_repeat() -> None:
    loads = [load(BASE, 0, 100), load("pool", 0, 50), load(BASE, 1, 10), load("pool", 1, 8), load(BASE, 2, 7)]
    assert ratios(loads, "pool", BASE, 32) == [0.5, 0.8]
    assert ratios(loads, "pool", BASE, 8) == []


def test_the_table_has_a_row_for_each_system_and_concurrency() -> None:
    loads = [load(BASE, 0, 100), load("pool", 0, 50), load(BASE, 0, 40, concurrent=1)]
    rows = as_markdown(loads, {"pool": 0.9}).splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == [["| 1", BASE], ["| 32", BASE], ["| 32", "pool"]]
    assert rows[2].endswith("| 0.500 (0.500 to 0.500) | 0.900 |")


def test_the_floor_counts_what_increments_must_add(loaded_tiny_base: Base) -> None:
    text: Any = loaded_tiny_base.model.config.text_config
    width, head = text.hidden_size, text.head_dim
    attention = width * head * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
    layer = attention + 3 * width * text.intermediate_size
    expected = text.num_hidden_layers * layer + width * text.vocab_size
    assert base_multiply_adds(loaded_tiny_base.model) == expected
    shapes = {"o_proj": (3, 64, 64)}
    assert pool_multiply_adds(shapes, 16) == 16 * 3 * 128
    assert floor_ratio(loaded_tiny_base.model, shapes, 16) == pytest.approx(
        expected / (expected + 16 * 3 * 128)
    )


def test_every_request_has_coefficients_of_its_own_on_four_increments() -> None:
    vectors = coefficients(32, 8)
    assert {int(c.count_nonzero()) for c in vectors} == {4}
    assert len({tuple(c.tolist()) for c in vectors}) == 32
    assert all(float(c.sum()) == pytest.approx(1.0) for c in vectors)


class Paced:
    """Answer with ten tokens, one every ``seconds``."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self.asked: list[str] = []

    async def open(self) -> None: ...

    def close(self) -> None: ...

    async def ask(self, number: int, request: Any) -> AsyncIterator[float]:
        self.asked.append(request)
        for _ in range(10):
            await asyncio.sleep(self.seconds)
            yield time.perf_counter()


class Requests:
    def requests(self, count: int, seed: int) -> list[str]:
        return [f"{seed}-{number}" for number in range(count)]


async def test_systems_answer_the_same_requests_in_turns() -> None:
    slow, fast = Paced("slow", 0.02), Paced("fast", 0.002)
    loads = await interleaved([slow, fast], cast("Any", Requests()), 3, 2, lambda _: None)
    assert sorted(slow.asked) == sorted(fast.asked)
    assert len(slow.asked) == 9  # two repeats and one that does not count
    assert sorted((found.system, found.repeat) for found in loads) == [
        ("fast", 0), ("fast", 1), ("slow", 0), ("slow", 1),
    ]  # fmt: skip
    assert max(ratios(loads, "slow", "fast", 3)) < 0.8


async def test_an_open_load_does_not_wait_for_answers() -> None:
    began = time.perf_counter()
    latency = await open_load(Paced("slow", 0.03), cast("Any", Requests()), rate=40, seconds=0.5)
    assert time.perf_counter() - began < 3  # one after the other would take six
    assert 0.29 < latency.median_seconds <= latency.p95_seconds
