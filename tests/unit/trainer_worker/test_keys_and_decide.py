"""Where keys go, and whether a batch opens a task."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from adapter_store.errors import InputError
from trainer_worker.decide import calibrate_theta, centroids_of, decide
from trainer_worker.keys import MOST_KEYS, align_keys, grown_keys, stranger_bar


def cloud(center: int, count: int, spread: float = 0.1, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(center)
    middle = torch.zeros(width)
    middle[center] = 1
    noise = torch.randn(count, width, generator=generator) * spread / width**0.5
    return F.normalize(middle + noise, dim=1)


def test_keys_settle_on_the_clusters_and_serve_every_query():
    queries = torch.cat([cloud(n, 20) for n in range(4)])
    aligned = align_keys(queries, 8, 2, torch.Generator().manual_seed(0))
    assert aligned.keys.norm(dim=-1).flatten().tolist() == pytest.approx([1.0] * 8, abs=1e-5)
    assert float((queries @ aligned.keys[:, 0].T).max(dim=1).values.min()) > 0.95
    assert float(aligned.picks.max()) == pytest.approx(1 / 8)
    assert float(aligned.picks.sum()) == pytest.approx(1.0)


def test_the_search_ends_before_one_key_is_picked_by_more_than_60_percent():
    generator = torch.Generator().manual_seed(91)  # without the rule: 75 %
    queries = F.normalize(torch.randn(12, 4, generator=generator) + torch.tensor([1.0, 0, 0, 0]), dim=1)
    aligned = align_keys(queries, 4, 2, torch.Generator().manual_seed(0))
    assert float(aligned.picks.max()) * 2 <= 0.6


def test_rows_that_all_answer_share_the_mean_direction():
    queries = torch.cat([cloud(n, 20) for n in range(3)])
    aligned = align_keys(queries, 4, 4, torch.Generator().manual_seed(0))
    mean = F.normalize(queries.sum(dim=0), dim=0)
    assert torch.allclose(aligned.keys @ mean, torch.ones(4), atol=1e-5)
    assert aligned.mean_cosine == pytest.approx(float((queries @ mean).mean()), abs=1e-5)
    assert aligned.picks.tolist() == [0.25] * 4


def test_unlike_kinds_of_queries_get_keys_of_their_own_that_all_rows_share():
    queries = torch.cat([cloud(n, 64) for n in range(4)])
    aligned = align_keys(queries, 4, 4, torch.Generator().manual_seed(0))
    assert aligned.keys.shape == (4, 8, 16)
    assert torch.equal(aligned.keys, aligned.keys[:1].expand(4, -1, -1))
    assert float((queries @ aligned.keys[0].T).amax(dim=1).min()) > 0.95  # the mean's cosine is about 0.5


def test_a_task_that_comes_back_is_found_by_old_and_new_queries():
    generator = torch.Generator().manual_seed(0)
    keys = align_keys(cloud(0, 64), 4, 4, generator).keys
    grown = grown_keys(keys, cloud(5, 32), generator)
    assert torch.equal(grown[:, : keys.shape[1]], keys)
    for center in (0, 5):
        assert float((cloud(center, 20) @ grown[0].T).amax(dim=1).min()) > 0.95
    again = grown_keys(grown, cloud(5, 32), generator)
    assert again.shape == grown.shape  # the same queries need no further key


def test_keys_never_outgrow_their_room():
    generator = torch.Generator().manual_seed(0)
    keys = align_keys(torch.randn(32, 64, generator=generator), 2, 4, generator).keys
    for _ in range(MOST_KEYS + 5):
        keys = grown_keys(keys, torch.randn(32, 64, generator=generator), generator)
    assert keys.shape == (2, MOST_KEYS, 64)
    assert torch.allclose(keys.norm(dim=-1), torch.ones(2, MOST_KEYS), atol=1e-5)


def test_equal_queries_are_answered_by_m_rows_and_the_others_are_harmless():
    queries = cloud(3, 1).repeat(50, 1)
    aligned = align_keys(queries, 8, 4, torch.Generator().manual_seed(0))
    assert sorted(aligned.picks.tolist()) == pytest.approx([0, 0, 0, 0, 0.25, 0.25, 0.25, 0.25])
    assert aligned.mean_cosine > 0.999
    assert bool(torch.isfinite(aligned.keys).all())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_queries_than_rows_work(count: int):
    aligned = align_keys(cloud(1, count), 8, 4, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(aligned.keys).all())
    assert aligned.mean_cosine > 0.9


def known() -> dict:
    generator = torch.Generator().manual_seed(0)
    first, second = centroids_of(cloud(0, 30), 4, generator), centroids_of(cloud(1, 30), 4, generator)
    return {
        "tasks": ("a", "b"),
        "centroids": torch.cat([first, second]),
        "centroid_task": torch.tensor([0] * len(first) + [1] * len(second)),
        "held_out": {"a": cloud(0, 10), "b": cloud(1, 10)},
    }


def test_a_familiar_batch_is_retrained_and_a_foreign_one_opens_a_task():
    same = decide(cloud(1, 7), named=None, **known())
    assert (same.decision, same.task) == ("retrain", "b")
    foreign = decide(cloud(9, 7), named=None, **known())
    assert (foreign.decision, foreign.task) == ("expand", "task-3")
    assert foreign.theta is not None
    assert same.similarities["b"] > foreign.theta > max(foreign.similarities.values())


def test_a_name_decides_and_a_first_task_needs_none():
    assert decide(cloud(9, 7), named="a", **known()).decision == "retrain"
    assert decide(cloud(0, 7), named="new", **known()).decision == "expand"
    nothing = {
        "tasks": (),
        "centroids": torch.zeros(0, 16),
        "centroid_task": torch.zeros(0, dtype=torch.long),
        "held_out": {},
    }
    assert decide(cloud(0, 7), named=None, **nothing).task == "task-1"
    assert decide(cloud(0, 7), named=None, taken={"task-1", "task-2"}, **nothing).task == "task-3"
    with pytest.raises(InputError, match="no question"):
        decide(torch.zeros(0, 16), named=None, **nothing)


def test_theta_lies_between_own_and_foreign_and_below_own_when_alone():
    parts = known()
    theta = calibrate_theta(parts["tasks"], parts["held_out"], parts["centroids"], parts["centroid_task"])
    assert 0.3 < theta < 0.7
    alone = calibrate_theta(("a",), {"a": cloud(0, 10)}, cloud(0, 4), torch.zeros(4, dtype=torch.long))
    assert 0.7 < alone < 0.9


def test_the_stranger_bar_lies_between_own_and_general_questions():
    own, strangers = torch.linspace(0.8, 0.95, 200), torch.linspace(-0.1, 0.5, 200)
    bar = stranger_bar(own, strangers)
    assert 0.6 < bar < 0.7
    assert float((own < bar).sum()) == float((strangers >= bar).sum()) == 0


@pytest.mark.parametrize("strangers", [torch.linspace(0.5, 0.99, 50), torch.empty(0)])
def test_where_they_overlap_no_question_of_the_task_is_turned_away(strangers: torch.Tensor):
    own = torch.linspace(0.7, 0.9, 50)
    assert 0.69 < stranger_bar(own, strangers) < 0.7
