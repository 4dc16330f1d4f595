"""A known task that comes back: which of its rows learn, what finds them, and what stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from adapter_store.routing import intrinsic
from adapter_store.state import AdapterState
from trainer_worker.keys import align_keys
from trainer_worker.placing import LEAST_KNOWN, MOST_BRANCHES, Placed, meet_again

WIDTH = 32


def cloud(center: int, count: int, seed: int = 0) -> torch.Tensor:
    """Return unit queries around one axis."""
    generator = torch.Generator().manual_seed(100 * center + seed)
    noise = torch.randn(count, WIDTH, generator=generator) * 0.1 / WIDTH**0.5
    return F.normalize(torch.eye(WIDTH)[center] + noise, dim=1)


def taught(queries: torch.Tensor, rows: int = 2, top_m: int = 2) -> AdapterState:
    generator = torch.Generator().manual_seed(0)
    state = AdapterState.empty("d", {"o_proj": (1, 4, 4)}, query_width=WIDTH, rank=1)
    state = state.with_routing(top_m=top_m).expand("t", rows, generator)
    own = state.rows_of("t")
    return state.with_rows(own, keys=align_keys(queries, rows, top_m, generator).keys)


def met(
    state: AdapterState, queries: torch.Tensor, known: torch.Tensor | None, *, branch: bool = True
) -> Placed:
    generator = torch.Generator().manual_seed(1)
    return meet_again(state, "t", queries, known, generator, branch=branch, say=lambda _text, _data: None)


def served_as_trained(placed: Placed, queries: torch.Tensor) -> float:
    """Return the share of queries that serving sends to just the rows that learn from them."""
    trained = intrinsic(placed.state, queries, among=placed.rows)
    return float((trained - intrinsic(placed.state, queries)).abs().amax(dim=1).le(1e-6).float().mean())


def two_shapes() -> AdapterState:
    return met(taught(cloud(0, 64)), cloud(1, 64), cloud(0, 20, 1)).state


def test_far_from_before_copies_learn_and_each_shape_finds_its_own():
    state = taught(cloud(0, 64))
    placed = met(state, cloud(1, 64), cloud(0, 20, 1))
    assert placed.rows.tolist() == [2, 3]
    assert placed.state.branch_of.tolist() == [0, 0, 1, 1]
    assert served_as_trained(placed, cloud(1, 64)) == 1
    assert float(intrinsic(placed.state, cloud(0, 50, 2))[:, 2:].abs().max()) == 0


def test_a_batch_that_is_partly_old_puts_no_key_of_the_copies_there():
    state = taught(cloud(0, 64))
    placed = met(state, torch.cat([cloud(1, 55), cloud(0, 45, 3)]), cloud(0, 40, 1))
    assert placed.state.rows == 4
    assert float(intrinsic(placed.state, cloud(0, 50, 2))[:, 2:].abs().max()) == 0


def test_a_mixed_batch_trains_both_branches_and_steals_no_question():
    state = two_shapes()
    batch = torch.cat([cloud(0, 60, 4), cloud(1, 40, 4)])
    placed = met(state, batch, torch.cat([cloud(0, 20, 1), cloud(1, 20, 1)]))
    assert placed.rows.tolist() == [0, 1, 2, 3]
    assert served_as_trained(placed, batch) == 1
    assert float(intrinsic(placed.state, cloud(1, 50, 5))[:, :2].abs().max()) == 0


def test_more_rows_than_answer_learn_as_a_whole_with_their_keys():
    queries = torch.cat([cloud(0, 40), cloud(1, 40)])
    state = taught(queries, rows=4, top_m=2)
    placed = met(state, torch.cat([cloud(2, 60), cloud(3, 60)]), queries)
    assert placed.rows.tolist() == [0, 1, 2, 3]
    assert torch.equal(placed.state.keys, state.keys)


def test_one_row_a_branch_keeps_branches_apart():
    first = met(taught(cloud(0, 64), rows=1, top_m=1), cloud(1, 64), cloud(0, 20, 1))
    known = torch.cat([cloud(0, 20, 1), cloud(1, 20, 1)])
    second = met(first.state, cloud(1, 64, 6), known)
    assert (first.rows.tolist(), second.rows.tolist()) == ([1], [1])


@pytest.mark.parametrize(
    ("rows", "known", "branch"),
    [(1, 20, True), (2, LEAST_KNOWN - 1, True), (2, 0, True), (2, 20, False)],
    ids=["fewer rows than answer", "too few known", "none known", "switched off"],
)
def test_without_ground_for_it_the_same_rows_learn(rows: int, known: int, branch: bool):
    state = taught(cloud(0, 64), rows=rows)
    earlier = cloud(0, known, 1) if known else None
    placed = met(state, cloud(1, 64), earlier, branch=branch)
    assert placed.rows.tolist() == list(range(rows))
    assert served_as_trained(placed, cloud(1, 64)) == 1


def test_a_batch_of_every_branch_trains_at_least_one():
    state = taught(cloud(0, 64))
    for center in range(1, 12):
        known = torch.cat([cloud(old, 20, 1) for old in range(center)])
        state = met(state, cloud(center, 64), known).state
    everywhere = torch.cat([cloud(center, 10, 5) for center in range(12)])
    placed = met(state, everywhere, everywhere)
    assert state.branches("t") == 12
    assert len(placed.rows)


def test_branches_have_an_end():
    state = taught(cloud(0, 64))
    for center in range(1, MOST_BRANCHES + 3):
        state = met(state, cloud(center, 64), cloud(0, 20, 1)).state
    assert state.branches("t") == MOST_BRANCHES
