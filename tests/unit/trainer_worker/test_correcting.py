"""Corrections are found one by one, take keys over from earlier ones, and their own pictures judge them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.routing import intrinsic
from adapter_store.state import AdapterState
from trainer_worker.correcting import correcting_settings, meet_corrected
from trainer_worker.gate import Corrected, Measured, Policy, check
from trainer_worker.keys import align_keys

WIDTH = 256
MOST = 16


def queries(count: int, seed: int = 0) -> torch.Tensor:
    """Return unit queries that have one half in common, as questions about different pictures do."""
    generator = torch.Generator().manual_seed(seed)
    own = F.normalize(torch.randn(count, WIDTH, generator=generator), dim=1)
    return F.normalize(own + torch.eye(WIDTH)[0], dim=1)


def taught(own: torch.Tensor, rows: int = 2, top_m: int = 2, *, exact: bool = False) -> AdapterState:
    generator = torch.Generator().manual_seed(0)
    state = AdapterState.empty("d", {"o_proj": (1, 4, 4)}, query_width=WIDTH, rank=1)
    state = state.with_routing(top_m=top_m).expand("t", rows, generator)
    keys = align_keys(own, rows, top_m, generator, exact=exact).keys
    return state.with_rows(state.rows_of("t"), keys=keys)


def met(state: AdapterState, batch: torch.Tensor, most: int = MOST) -> tuple[AdapterState, list[int]]:
    state, rows = meet_corrected(state, "t", batch, torch.Generator().manual_seed(1), most_branches=most)
    return state, rows.tolist()


def answering_rows(state: AdapterState, asked: torch.Tensor) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in intrinsic(state, asked)]


def test_every_corrected_question_and_hardly_another_finds_the_copies():
    own, batch = queries(64), queries(8, seed=1)
    state, rows = met(taught(own), batch)
    assert rows == [2, 3]
    assert answering_rows(state, batch) == [[2, 3]] * 8
    assert answering_rows(state, own).count([0, 1]) >= 60


def test_a_question_corrected_again_leaves_the_older_branch():
    state, _ = met(taught(queries(64)), queries(4, seed=1))
    batch = torch.cat([queries(4, seed=1)[:1], queries(3, seed=2)])
    state, rows = met(state, batch)
    assert rows == [4, 5]
    assert answering_rows(state, batch) == [[4, 5]] * 4
    assert answering_rows(state, queries(4, seed=1)[1:]) == [[2, 3]] * 3


def test_the_same_question_can_be_corrected_over_and_over():
    state, batch = taught(queries(64)), queries(4, seed=1)
    for branch in range(1, 6):
        state, rows = met(state, batch)
        assert rows == [2 * branch, 2 * branch + 1]
        assert answering_rows(state, batch) == [rows] * 4


def test_what_is_a_key_itself_is_learned_where_it_is_or_moves():
    batch = queries(4, seed=1)
    first = taught(batch, exact=True)
    state, rows = met(first, batch[:2])
    assert (rows, state.rows) == ([0, 1], first.rows)
    state, rows = met(first, torch.cat([batch[:2], queries(1, seed=2)]))
    assert rows == [2, 3]
    assert answering_rows(state, batch) == [[2, 3]] * 2 + [[0, 1]] * 2


def test_no_branch_is_left_without_a_key():
    first = taught(queries(1, seed=1), exact=True)
    batch = torch.cat([queries(1, seed=1), queries(2, seed=2)])
    state, rows = met(first, batch)
    assert (rows, state.rows) == ([0, 1], first.rows)
    assert answering_rows(state, batch) == [[0, 1]] * 3


def test_of_a_tight_cluster_one_question_is_taken_and_not_its_neighbors():
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn(80, WIDTH, generator=generator) * 0.3 / WIDTH**0.5
    cluster = F.normalize(torch.eye(WIDTH)[1] + spread, dim=1)
    elsewhere = F.normalize(torch.eye(WIDTH)[2] + spread, dim=1)
    state = taught(F.normalize(torch.cat([cluster[:30], elsewhere[:1]]).mean(dim=0, keepdim=True), dim=1))
    asked, again = cluster[40:41], F.normalize(cluster[40:41] + 0.05 * spread[70], dim=1)
    for _ in range(2):
        state, rows = met(state, asked)
        assert answering_rows(state, torch.cat([asked, again])) == [rows] * 2
        assert answering_rows(state, torch.cat([cluster[:40], cluster[41:]])) == [[0, 1]] * 79


@pytest.mark.parametrize(("rows", "most"), [(2, 1), (2, 0), (1, 16)], ids=["no room", "off", "fewer rows"])
def test_without_room_for_a_branch_the_same_rows_learn(rows: int, most: int):
    state = taught(queries(64), rows=rows)
    batch = queries(5, seed=1)
    after, learning = met(state, batch, most)
    assert after.rows == state.rows
    assert learning == list(range(rows))
    assert answering_rows(after, batch) == [learning] * 5


def test_more_rows_than_answer_learn_as_a_whole():
    state = taught(queries(64), rows=4)
    after, learning = met(state, queries(5, seed=1))
    assert learning == [0, 1, 2, 3]
    assert torch.equal(after.keys, state.keys)


def test_a_new_task_of_corrections_is_found_by_each_of_them():
    batch = queries(8, seed=1)
    state = taught(batch, exact=True)
    assert torch.allclose((F.normalize(batch, dim=1) @ state.keys[0].T).amax(dim=1), torch.ones(8))


def test_they_are_learned_until_they_are_right_unless_the_job_says_otherwise():
    settings = correcting_settings(Hyperparameters(seed=7), {})
    assert (settings.target_accuracy, settings.patience, settings.seed) == (1.0, 0, 7)
    assert correcting_settings(Hyperparameters(patience=2), {"patience": 2}).patience == 2


def judged(corrected: Corrected, **more: object) -> tuple[str, ...]:
    values: dict = {"before": {"a": 0.9}, "after": {"a": 0.9, "b": None}, "leak": {}, "retention": 0.99}
    return check(Measured("b", new_task=True, corrected=corrected, **{**values, **more}), Policy()).reasons


def test_the_gate_asks_whether_the_corrected_questions_are_answered_as_corrected():
    assert judged(Corrected(before=0, after=1, asked=1)) == ()
    assert judged(Corrected(before=2, after=3, asked=8)) == ()
    assert judged(Corrected(before=1, after=1, asked=1)) == ()
    (reason,) = judged(Corrected(before=2, after=2, asked=8))
    assert "2 of 8 corrected questions of b are answered as corrected" in reason


def test_the_other_tasks_are_protected_as_from_any_batch():
    (reason,) = judged(Corrected(0, 1, 1), after={"a": 0.8, "b": None})
    assert "a fell from 0.900 to 0.800" in reason
    (reason,) = judged(Corrected(0, 1, 1), leak={"a": 0.2})
    assert "routing leak of a" in reason
