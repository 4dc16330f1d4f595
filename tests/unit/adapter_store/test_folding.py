"""Folds against materialized float64 matrices, and what a pool beyond the dense limit serves."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from adapter_store import folding
from adapter_store.folding import fold_contexts
from adapter_store.routing import answering, coefficients, contextual
from adapter_store.served import ServedPool, drop_smallest, open_pool, sizes_of
from adapter_store.state import CLOSED_CONTEXT, AdapterState

SHAPES = {"o_proj": (2, 40, 48), "q_proj": (2, 40, 32)}
ROWS, RANK = 4, 4


def make_state(tasks: int = 8, decay: float = 1.2, seed: int = 0, logit: float = 0.0) -> AdapterState:
    """Return tasks whose mean increments have singular values falling by ``exp(-decay)`` each."""
    generator = torch.Generator().manual_seed(seed)
    state = AdapterState.empty("d", SHAPES, query_width=16, rank=RANK)
    strength = torch.exp(-decay * torch.arange(ROWS * RANK)).view(RANK, ROWS).T
    for task in range(tasks):
        state = state.expand(f"t{task}", ROWS, generator, context_logit=logit)
        rows = state.rows_of(f"t{task}")
        up = {
            name: torch.randn(layers, ROWS, d_out, RANK, generator=generator) * strength[:, None]
            for name, (layers, _, d_out) in SHAPES.items()
        }
        usage = torch.zeros(state.rows).index_fill_(0, rows, 1 / ROWS)
        state = state.with_rows(rows, up=up).with_usage(f"t{task}", usage)
    return state


def matrices(down: dict, up: dict, c: Tensor) -> list[Tensor]:
    """Return ``sum_n c_n B_n A_n`` at every linear, in float64."""
    return [
        torch.einsum("n,nor,nri->oi", c.double(), b.double(), a.double())
        for name in down
        for a, b in zip(down[name], up[name], strict=True)
    ]


def contexts(state: AdapterState, task: int) -> list[Tensor]:
    c = torch.sigmoid(state.context.double()).tril(-1)[task] @ state.usage.double()
    return matrices(dict(state.down), dict(state.up), c)


def norm(parts: list[Tensor]) -> float:
    return float(torch.stack([part.square().sum() for part in parts]).sum().sqrt())


@pytest.mark.parametrize("bound", [0.3, 0.05, 0.01])
def test_the_error_of_a_fold_is_exact_and_within_the_bound(bound: float) -> None:
    state = make_state()
    folds = fold_contexts(state, bound, most=8)
    assert set(folds) == set(range(1, 8)), "the first task has nothing before it"
    for task, fold in folds.items():
        assert fold is not None
        errors = [
            float((wanted - found).norm() / wanted.norm())
            for wanted, found in zip(
                contexts(state, task),
                matrices(dict(fold.down), dict(fold.up), torch.ones(fold.rows)),
                strict=True,
            )
        ]
        assert max(errors) <= bound
        assert fold.error == pytest.approx(max(errors), rel=1e-2, abs=2e-4)
        best = max(needed(wanted, bound) for wanted in contexts(state, task))
        assert fold.rows <= -(-(best + 1) // RANK), f"task {task} takes far more than the best rank {best}"


def needed(matrix: Tensor, bound: float) -> int:
    """Return the least rank whose truncation error is within the bound."""
    values = torch.linalg.svdvals(matrix)
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt() / values.norm()
    return int((tails > bound).sum())


def test_a_context_that_needs_too_many_ranks_is_not_folded() -> None:
    flat = make_state(decay=0.0)
    folds = fold_contexts(flat, 0.01, most=4)
    assert folds[1] is not None, "one earlier task has just 16 ranks"
    assert folds[7] is None
    pool = open_pool(flat, 0, most=4, dropped=0.0)
    a = torch.zeros(2, flat.rows)
    a[0, flat.rows_of("t7")] = 1 / ROWS
    a[1, flat.rows_of("t1")] = 1 / ROWS
    served = pool.coefficients(a)
    torch.testing.assert_close(served[0, : flat.rows], (a + contextual(flat, a))[0])
    assert not served[0, flat.rows :].any()
    assert int((served[1] != 0).sum()) == ROWS + folds[1].rows


def test_closed_contexts_bring_nothing() -> None:
    state = make_state(tasks=3, logit=CLOSED_CONTEXT)
    assert fold_contexts(state) == {}
    pool = open_pool(state, 0)
    assert pool.rows == state.rows
    assert pool.staged() is state


def test_up_to_the_limit_everything_is_exact() -> None:
    state = make_state()
    queries = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    pool = open_pool(state, state.total_rank)
    assert pool.staged() is state
    assert torch.equal(pool.coefficients(answering(state, queries)), coefficients(state, queries))
    assert open_pool(state, state.total_rank - 1).folds


@pytest.mark.parametrize("dropped", [0.0, 1e-3, 0.05])
def test_a_served_request_stays_within_the_stated_bound(dropped: float) -> None:
    """Compare the served increments with the exact ones as matrices and as outputs."""
    state, bound = make_state(), 0.02
    pool = open_pool(state, 0, error=bound, dropped=dropped)
    staged = pool.staged().validate()
    queries = torch.randn(12, 16, generator=torch.Generator().manual_seed(2))
    a = answering(state, queries)
    exact, served = a + contextual(state, a), pool.coefficients(a)
    sizes = sizes_of(staged.down, staged.up)
    kept = dataclasses.replace(pool, dropped=0.0).coefficients(a)
    for row in range(len(a)):
        wanted = matrices(dict(state.down), dict(state.up), exact[row])
        found = matrices(dict(staged.down), dict(staged.up), served[row])
        masses = torch.zeros(8).index_add_(0, state.task_of, a[row])
        for place, (one, other) in enumerate(zip(wanted, found, strict=True)):
            allowed = sum(
                float(masses[task]) * bound * float(contexts(state, task)[place].norm())
                for task in range(1, 8)
            )
            allowed += dropped * float(kept[row] @ sizes) + 1e-5
            assert float((one - other).norm()) <= allowed
            x = torch.randn(one.shape[1], dtype=torch.float64)
            assert float(((one - other) @ x).norm()) <= allowed * float(x.norm())


def test_dropping_keeps_its_bound_and_drops_by_size() -> None:
    state = make_state(decay=0.1)
    sizes = sizes_of(state.down, state.up)
    plain = [norm(matrices(dict(state.down), dict(state.up), row)) for row in torch.eye(state.rows)]
    torch.testing.assert_close(sizes, torch.tensor(plain, dtype=torch.float32), rtol=1e-4, atol=1e-5)
    c = torch.rand(6, state.rows, generator=torch.Generator().manual_seed(3)) ** 6
    for share in (0.0, 0.01, 0.2):
        kept = drop_smallest(c, sizes, share)
        assert torch.equal(kept[kept != 0], c[kept != 0])
        for row in range(len(c)):
            change = norm(matrices(dict(state.down), dict(state.up), c[row] - kept[row]))
            assert change <= share * float(c[row] @ sizes) + 1e-6
        gone = (kept == 0) & (c != 0)
        assert bool(gone.any()) == (share > 0)
        if share:
            weighed = c * sizes
            assert float((weighed * gone).amax()) <= float(weighed.amax())
            assert all(
                weighed[r][gone[r]].max() <= weighed[r][~gone[r] & (c[r] != 0)].min() for r in range(6)
            )
    alone = torch.cat([drop_smallest(row[None], sizes, 0.05) for row in c])
    assert torch.equal(drop_smallest(c, sizes, 0.05), alone), "batch mates decide what is dropped"


def test_a_version_takes_over_the_folds_that_did_not_change() -> None:
    first = make_state(tasks=6)
    held = fold_contexts(first)
    second = first.expand("new", ROWS, context_logit=0.0)
    rows = second.rows_of("new")
    second = second.with_usage("new", torch.zeros(second.rows).index_fill_(0, rows, 0.25))
    folds = fold_contexts(second)
    assert len(folds) == len(held) + 1
    assert all(folds[task] is held[task] for task in held)
    moved = second.with_rows([0], up={name: up[:, :1] * 1.5 for name, up in second.up.items()})
    again = fold_contexts(moved)
    assert all(again[task] is not folds[task] for task in folds), "each context drew on the row that moved"


def test_folds_of_a_version_that_is_gone_are_not_kept() -> None:
    held = fold_contexts(make_state(seed=11))
    known = len(folding._KNOWN)
    assert known >= len(held)
    del held
    assert len(folding._KNOWN) < known


def test_pool_is_a_value_with_the_states_routing() -> None:
    state = make_state()
    pool = open_pool(state, 0)
    assert isinstance(pool, ServedPool)
    assert pool.rows == state.rows + sum(fold.rows for fold in pool.folds.values()) == pool.staged().rows
    silent = dataclasses.replace(pool, state=state.with_routing(tau=1.0))
    queries = torch.randn(3, 16)
    assert not silent.coefficients(answering(silent.state, queries)).any()
