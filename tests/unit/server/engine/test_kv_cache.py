"""Rows stay whole through growth, moves and swaps; a scheduler keeps them dense."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from server.engine.banks import BankSlot
from server.engine.detokenizer import TextStream, TokenTexts
from server.engine.kv_cache import KeyValues, SlottedCache
from server.engine.prefix_cache import PrefixCache
from server.engine.protocol import GenerationRequest
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from tests.tiny_llava import build_tokenizer


def memory(**limits: Any) -> KeyValues:
    settings = {"max_slots": 8, "max_length": 600, "max_bytes": 1 << 30} | limits
    return KeyValues(
        layers=2, heads=2, head_dim=4, dtype=torch.float32, device=torch.device("cpu"), **settings
    )


def test_growth_keeps_what_is_stored() -> None:
    kept = memory()
    kept.ensure(2, 100)
    tokens = torch.randn(2, 2, 60, 8)
    kept.write(1, 20, tokens)
    kept.ensure(7, 300)
    assert torch.equal(kept.read(1, 20, 80), tokens)
    assert (kept.slots, kept.length) == (8, 384)
    assert kept.nbytes == 8 * 384 * kept.token_bytes == sum(layer.nbytes for layer in kept.store)
    kept.swap(1, 3, 80)
    assert torch.equal(kept.read(3, 20, 80), tokens)
    kept.move(3, 0, 80)
    assert torch.equal(kept.read(0, 20, 80), tokens)
    kept.clear(0)
    assert not kept.read(0, 0, 384).any()
    kept.shrink()
    assert kept.nbytes == 0


def test_slots_of_rows_that_left_are_given_up_before_the_bound_breaks() -> None:
    bound = 4 * 128 * 2 * 2 * 8 * 4
    tight = memory(max_bytes=bound)
    tight.ensure(4, 100)
    tokens = torch.randn(2, 2, 60, 8)
    tight.write(1, 20, tokens)
    assert tight.fits(2, 200)
    tight.ensure(2, 200)
    assert (tight.slots, tight.length) == (2, 256)
    assert torch.equal(tight.read(1, 20, 80), tokens)
    assert tight.fits(4, 100)
    tight.ensure(4, 100)
    assert tight.nbytes <= bound
    assert torch.equal(tight.read(1, 20, 80), tokens)


def test_bounds() -> None:
    tight = memory(max_bytes=3 * 128 * 2 * 2 * 8 * 4)
    assert tight.fits(3, 100)
    assert not tight.fits(4, 100)
    assert not tight.fits(2, 200)
    assert tight.fits(1, 600)  # one row always runs
    assert not tight.fits(1, 601)
    assert not memory().fits(9, 10)


@pytest.mark.parametrize("slots", [[0, 1, 2], [1, 2, 3], [3, 0, 2]])
def test_each_row_writes_at_its_own_place_and_sees_itself(slots: list[int]) -> None:
    kept = memory()
    kept.ensure(4, 50)
    cache = SlottedCache(kept)
    lengths = [3, 0, 7]
    rows = [torch.randn(2, 2, length, 8) for length in lengths]
    for slot, row in zip(slots, rows, strict=True):
        kept.write(slot, 0, row)
    positions = torch.tensor(lengths)[:, None] + torch.arange(2)
    cache.bind(slots, positions, 9)
    new = torch.randn(3, 2, 2, 4)
    keys, values = cache.update(new, new + 1, layer_idx=1)
    assert keys.shape == values.shape == (3, 2, 9, 4)
    for index, length in enumerate(lengths):
        old = rows[index][1, 0].view(length, 2, 4).transpose(0, 1)
        assert torch.equal(keys[index, :, :length], old)
        assert torch.equal(keys[index, :, length : length + 2], new[index])
        assert torch.equal(values[index, :, length : length + 2], new[index] + 1)


def test_prompts_that_are_computed_together_keep_their_tokens_when_rows_change_places() -> None:
    kept = memory(max_slots=6)
    scheduler = Scheduler(kept, PrefixCache(0), max_batch=6, prefill_tokens=99, mixed_prefill_tokens=9)
    texts = TokenTexts(build_tokenizer())
    for number, (length, arrived) in enumerate(
        [(9, 2.0), (4, 1.0)], start=1
    ):  # the older one in the later slot
        request = GenerationRequest(str(number), list(range(5, 5 + length)))
        sequence = Sequence(request, lambda _: None, TextStream(texts), max_tokens=9, lease=BankSlot())
        sequence.arrived_seconds = arrived
        scheduler.waiting.append(sequence)
    plan = scheduler.schedule()
    for piece in plan.prefill:
        mark(kept, piece.sequence, piece.start, piece.stop - piece.start)
    assert scheduler.advance(plan.prefill) == [0, 1]
    check(kept, scheduler)


@pytest.mark.parametrize("budget", [24, 70])
def test_slots_stay_dense_and_rows_keep_their_tokens(budget: int) -> None:
    kept = memory(max_slots=6)
    scheduler = Scheduler(kept, PrefixCache(0), max_batch=6, prefill_tokens=budget, mixed_prefill_tokens=9)
    texts = TokenTexts(build_tokenizer())
    dice = random.Random(2)
    born = 0
    for _ in range(400):
        for _ in range(dice.choice([0, 0, 1, 1, 4]) if len(scheduler.waiting) < 5 else 0):
            born += 1
            ids = [dice.randrange(5, 300) for _ in range(dice.randrange(1, 30))]
            request = GenerationRequest(str(born), ids)
            scheduler.waiting.append(
                Sequence(request, lambda _: None, TextStream(texts), max_tokens=40, lease=BankSlot())
            )
        plan = scheduler.schedule()
        for sequence in plan.decode:
            mark(kept, sequence, sequence.filled, 1)
            sequence.filled += 1
        width = max((piece.stop - piece.start for piece in plan.prefill), default=0)
        assert width * len(plan.prefill) <= budget
        if len(plan.decode) == 5:
            assert width * len(plan.prefill) <= max(9, budget // 6)
        for piece in plan.prefill:
            mark(kept, piece.sequence, piece.start, piece.stop - piece.start)
        scheduler.advance(plan.prefill)
        for sequence in list(scheduler.running):
            if sequence.filled - sequence.prompt_tokens >= 40 or dice.random() < 0.05:
                scheduler.remove(sequence, poisoned=dice.random() < 0.5)
        check(kept, scheduler)
    assert born > 60


def mark(kept: KeyValues, sequence: Sequence, start: int, count: int) -> None:
    """Write the request's number and each position, so that every stored token says whose it is."""
    tokens = torch.zeros(2, 2, count, 8)
    tokens[..., 0] = float(sequence.request.request_id)
    tokens[..., 1] = torch.arange(start, start + count).float()
    kept.write(sequence.slot, start, tokens)


def check(kept: KeyValues, scheduler: Scheduler) -> None:
    for place, sequence in enumerate(scheduler.running):
        assert sequence.slot == place
        assert sequence.prefilled == (place < scheduler.decoding)
        stored = kept.read(place, 0, sequence.filled)
        assert torch.all(stored[..., 0] == float(sequence.request.request_id))
        assert torch.equal(stored[0, 0, :, 1], torch.arange(sequence.filled).float())
