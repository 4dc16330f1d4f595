"""What the scheduler keeps of a prompt when not all of it can be kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import torch

from server.engine.kv_cache import KeyValues
from server.engine.prefix_cache import PrefixCache, Segment
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence

TOKEN_BYTES = 16
HEAD, TURN, TAIL = Segment(0, 4, b"head"), Segment(4, 8, b"turn"), Segment(8, 12, b"tail")


def scheduler(cached_tokens: int) -> Scheduler:
    memory = KeyValues(
        layers=1,
        heads=1,
        head_dim=2,
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_slots=4,
        max_length=64,
        max_bytes=1 << 20,
    )
    assert memory.token_bytes == TOKEN_BYTES
    prefixes = PrefixCache(cached_tokens * TOKEN_BYTES)
    return Scheduler(memory, prefixes, max_batch=4, prefill_tokens=64, mixed_prefill_tokens=8)


def row(*segments: Segment) -> Sequence:
    request = SimpleNamespace(input_ids=tuple(range(13)))
    parts = {"stream": None, "lease": None, "emit": print}
    return Sequence(request=cast("object", request), max_tokens=2, segments=segments, **parts)  # type: ignore[arg-type]


def run(planner: Scheduler, sequence: Sequence) -> None:
    planner.waiting.append(sequence)
    pieces = planner.schedule().prefill
    assert planner.advance(pieces) == list(range(len(pieces)))
    planner.remember(sequence)
    planner.remove(sequence)


def test_heads_outlive_their_tails() -> None:
    planner = scheduler(cached_tokens=12)
    run(planner, row(HEAD, TURN, TAIL))
    run(planner, row(Segment(0, 4, b"other")))
    assert [key in planner.prefixes for key in (b"head", b"turn", b"tail")] == [True, True, False]


def test_using_a_prefix_leaves_its_head_newest() -> None:
    planner = scheduler(cached_tokens=12)
    run(planner, row(HEAD, TURN, TAIL))
    again = row(HEAD, TURN, TAIL)
    planner.waiting.append(again)
    planner.schedule()
    assert again.cached == 12
    planner.prefixes.put(b"other", torch.zeros(16))
    assert [key in planner.prefixes for key in (b"head", b"turn", b"tail")] == [True, True, False]


def test_a_prompt_larger_than_the_cache_keeps_its_head() -> None:
    planner = scheduler(cached_tokens=8)
    for _ in range(2):
        run(planner, row(HEAD, TURN, TAIL))
        assert [key in planner.prefixes for key in (b"head", b"turn", b"tail")] == [True, True, False]
