"""Coefficients against a plain loop over the equations, and at the edges."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from adapter_store.errors import NotFoundError, StateInvalid
from adapter_store.key_table import key_table
from adapter_store.routing import (
    coefficients,
    contextual,
    cosines,
    explain,
    intrinsic,
    mass_outside,
    task_mass,
)
from adapter_store.state import AdapterState

WIDTH = 6


def make_state(
    tasks: int = 3, rows: int = 3, top_m: int = 4, tau: float = 0.0, seed: int = 0
) -> AdapterState:
    generator = torch.Generator().manual_seed(seed)
    state = AdapterState.empty("d", {"o_proj": (1, 4, 4)}, query_width=WIDTH, rank=1)
    for index in range(tasks):
        state = state.expand(f"t{index}", rows, generator)
        state = state.with_usage(f"t{index}", torch.rand(state.rows, generator=generator))
        state = state.with_context(f"t{index}", torch.randn(index, generator=generator))
    return state.with_routing(top_m=top_m, tau=tau)


def by_hand(state: AdapterState, query: torch.Tensor, only_task: str | None = None) -> tuple[list, list]:
    """Compute eq. 2 to 4 for one query with plain loops in Python floats."""
    query = F.normalize(query.double(), dim=0)
    cosine = [float(query @ key) for key in state.keys[:, 0].double()]
    rows = [
        n for n in range(state.rows) if only_task is None or state.tasks[int(state.task_of[n])] == only_task
    ]
    chosen = sorted(rows, key=lambda n: -cosine[n])[: state.routing.top_m]
    total = sum(max(cosine[n], 0.0) for n in chosen)
    a = [max(cosine[n], 0.0) / total if n in chosen and total > 0 else 0.0 for n in range(state.rows)]
    k = [0.0] * state.rows
    for m in range(state.rows):
        t = int(state.task_of[m])
        for earlier in range(t):
            gate = 1 / (1 + math.exp(-float(state.context[t, earlier])))
            for n in range(state.rows):
                k[n] += a[m] * gate * float(state.usage[earlier, n])
    return a, k


@pytest.mark.parametrize("only_task", [None, "t1"])
@pytest.mark.parametrize("top_m", [1, 2, 4, 100])
def test_equations_2_to_5_against_plain_loops(only_task: str | None, top_m: int) -> None:
    state = make_state(top_m=top_m)
    queries = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(5))
    among = None if only_task is None else state.rows_of(only_task)
    a = intrinsic(state, queries, among)
    c = coefficients(state, queries, among)
    for index, query in enumerate(queries):
        wanted_a, wanted_k = by_hand(state, query, only_task)
        torch.testing.assert_close(a[index], torch.tensor(wanted_a), atol=1e-6, rtol=1e-5)
        wanted_c = torch.tensor(wanted_a) + torch.tensor(wanted_k)
        torch.testing.assert_close(c[index], wanted_c, atol=1e-6, rtol=1e-5)


def test_i5_coefficients_do_not_depend_on_the_batch_or_a_reload(tmp_path: Path) -> None:
    state = make_state(tasks=5, rows=8)
    queries = F.normalize(torch.randn(33, WIDTH), dim=-1)
    together = coefficients(state, queries)
    alone = torch.cat([coefficients(state, query[None]) for query in queries])
    torch.testing.assert_close(together, alone, atol=1e-7, rtol=1e-6)
    assert torch.equal(together != 0, alone != 0)
    state.save(tmp_path)
    assert torch.equal(coefficients(AdapterState.load(tmp_path, base_digest="d"), queries), together)


def test_an_increment_is_as_near_as_the_nearest_of_its_keys() -> None:
    axes = torch.eye(WIDTH)
    state = make_state(tasks=2, rows=2, top_m=2)
    state = state.with_rows([0, 1], keys=torch.stack([axes[0], axes[3]]).expand(2, -1, -1))
    state = state.with_rows([2, 3], keys=axes[[1, 1]])
    assert state.keys.shape == (4, 2, WIDTH)
    wanted = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]])
    torch.testing.assert_close(cosines(state, axes[[0, 1, 3]]), wanted)
    torch.testing.assert_close(intrinsic(state, axes[[0, 1, 3]]), wanted / 2)


def test_no_query_has_no_cosine() -> None:
    state = make_state()
    assert cosines(state, torch.zeros(0, state.query_width)).shape == (0, state.rows)


def test_no_positive_cosine_gives_exact_zeros() -> None:
    state = make_state(tasks=1, rows=2)
    state = state.with_rows([0, 1], keys=torch.eye(WIDTH)[:2])
    query = -torch.eye(WIDTH)[:2].sum(0, keepdim=True)
    assert not intrinsic(state, query).any()
    assert not coefficients(state, query).any()
    assert explain(state, query)[0].answered_by_base


def test_negative_cosines_among_the_top_are_clipped() -> None:
    state = make_state(tasks=1, rows=3, top_m=3)
    state = state.with_rows([0, 1, 2], keys=torch.stack([*torch.eye(WIDTH)[:2], -torch.eye(WIDTH)[0]]))
    a = intrinsic(state, torch.eye(WIDTH)[:1])
    assert a.tolist() == [[1.0, 0.0, 0.0]]


def test_tau_hands_strangers_to_the_base_but_never_a_training_example() -> None:
    state = make_state(tasks=1, rows=2, tau=0.9).with_rows([0, 1], keys=torch.eye(WIDTH)[:2])
    near, far = torch.eye(WIDTH)[0], torch.ones(WIDTH)
    c = coefficients(state, torch.stack([near, far]))
    assert c[0].sum() == pytest.approx(1.0)
    assert not c[1].any()
    assert coefficients(state, far[None], among=state.rows_of("t0")).sum() == pytest.approx(1.0)


def test_a_state_without_increments_gives_empty_coefficients() -> None:
    state = AdapterState.empty("d", {"o_proj": (1, 4, 4)}, query_width=WIDTH)
    queries = torch.randn(2, WIDTH)
    assert coefficients(state, queries).shape == (2, 0)
    assert explain(state, queries)[0].rows == ()


def test_equal_cosines_are_taken_in_row_order() -> None:
    state = make_state(tasks=1, rows=6, top_m=2).with_rows(range(6), keys=torch.eye(WIDTH)[:1].repeat(6, 1))
    assert intrinsic(state, torch.eye(WIDTH)[:1]).tolist() == [[0.5, 0.5, 0.0, 0.0, 0.0, 0.0]]


def test_only_task_masks_and_unknown_tasks_are_named() -> None:
    state = make_state()
    a = intrinsic(state, torch.randn(4, WIDTH), among=state.rows_of("t2"))
    assert not a[:, state.task_of != 2].any()
    with pytest.raises(NotFoundError, match="t0, t1, t2"):
        intrinsic(state, torch.randn(1, WIDTH), among=state.rows_of("zebra"))
    with pytest.raises(StateInvalid, match=r"\[B, 6\]"):
        intrinsic(state, torch.randn(1, WIDTH + 1))


def test_contextual_is_differentiable_in_the_logits_of_earlier_tasks_only() -> None:
    state = make_state()
    a = intrinsic(state, torch.randn(4, WIDTH), among=state.rows_of("t2"))
    logits = state.context.clone().requires_grad_()
    contextual(state, a, logits).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[2, :2] != 0).all()
    logits.grad[2, :2] = 0
    assert not logits.grad.any()


def test_leak_and_task_mass() -> None:
    state = make_state(tasks=2, rows=2)
    c = torch.tensor([[3.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 2.0]])
    assert task_mass(state, c).tolist() == [[3.0, 1.0], [0.0, 0.0], [0.0, 4.0]]
    assert mass_outside(c, state, "t0").tolist() == [0.25, 0.0, 1.0]
    assert mass_outside(c, state, "t1").tolist() == [0.75, 0.0, 0.0]


def test_explain_agrees_with_the_coefficients() -> None:
    state = make_state()
    queries = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
    c = coefficients(state, queries)
    for index, told in enumerate(explain(state, queries)):
        total = float(c[index].sum())
        for row in told.rows:
            assert row.intrinsic + row.contextual == pytest.approx(float(c[index, row.row]), abs=1e-6)
        assert sum(told.task_shares.values()) == pytest.approx(1.0 if total else 0.0, abs=1e-5)
        assert sum(row.selected for row in told.rows) == 4
        assert told.best_cosine == pytest.approx(max(row.cosine for row in told.rows if row.selected))


def test_shared_keys_are_read_once_and_a_change_in_place_is_seen() -> None:
    """Cosines are those of a plain product in float64, for shared, single and changed keys."""
    state = make_state(tasks=4, rows=3)
    shared = F.normalize(torch.randn(4, 2, WIDTH, generator=torch.Generator().manual_seed(9)), dim=-1)
    state = state.with_rows(range(12), keys=shared.repeat_interleave(3, 0))
    queries = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(10))

    def plainly() -> torch.Tensor:
        units = F.normalize(queries.double(), dim=-1)
        return torch.einsum("bq,nkq->bnk", units, state.keys.double()).amax(dim=2).float()

    assert len(key_table(state.keys, state.keys.device).keys) == 4 * 2
    torch.testing.assert_close(cosines(state, queries), plainly(), atol=1e-7, rtol=0)
    assert key_table(state.keys, state.keys.device) is key_table(state.keys, state.keys.device)
    state.keys[4] = -state.keys[4]
    assert len(key_table(state.keys, state.keys.device).keys) == 6 * 2, "row 4 parts its task's rows"
    torch.testing.assert_close(cosines(state, queries), plainly(), atol=1e-7, rtol=0)
    with torch.inference_mode():
        copied = state.keys.clone()
        assert copied.is_inference()
        assert torch.equal(key_table(copied, copied.device).keys, key_table(state.keys, copied.device).keys)
