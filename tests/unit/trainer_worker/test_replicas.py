"""Replicas share weights and nothing else; together they do what one does alone."""

from __future__ import annotations

import threading

import pytest
import torch

from adapter_store.jobs.hyperparameters import Hyperparameters
from tests.unit.trainer_worker.conftest import Parts
from trainer_worker.evaluate import Served, score_state
from trainer_worker.learn import Lesson, learn
from trainer_worker.replicas import Replica, Replicas, share_cores


def test_a_copy_shares_every_weight_and_no_module(parts: Parts):
    other = parts.replicas.first.copy()
    ours, theirs = parts.replicas.language.backbone, other.language.backbone
    for mine, copied in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine is copied
    assert not {id(module) for module in ours.modules()} & {id(module) for module in theirs.modules()}
    assert other.language.upper.layers[0] is theirs.layers[0]  # type: ignore[index]


def test_increments_of_one_replica_do_not_act_on_another(parts: Parts):
    encoded = parts.encode(count=4)
    state = parts.taught(parts.untaught(), "colors", encoded, random_up=True)
    served = Served.of(state, parts.replicas.increments)
    other = parts.replicas.first.copy()
    ids = torch.tensor([encoded.prefixes[0].ids[:4]]) % 50
    with torch.no_grad():
        plain = other.language.backbone(input_ids=ids).last_hidden_state
        term = served.activate(torch.ones(1, state.rows))
        batch = type("Whole", (), {"owner": torch.zeros(1, 4, dtype=torch.long)})
        with term(parts.replicas.increments, batch):  # type: ignore[arg-type]
            beside = other.language.backbone(input_ids=ids).last_hidden_state
            changed = parts.replicas.language.backbone(input_ids=ids).last_hidden_state
    assert torch.equal(plain, beside)
    assert not torch.allclose(plain, changed)


@pytest.mark.parametrize("span", ["after_image", "all"])
def test_two_replicas_learn_and_score_what_one_does(parts: Parts, span):
    encoded = parts.encode(questions=2)
    state = parts.taught(parts.untaught(span), "colors", encoded)
    settings = Hyperparameters(max_steps=4, batch_size=10, patience=0)
    lesson = Lesson(encoded, parts.store(encoded), tuple(range(len(encoded))), (0, 1))
    alone = Replicas(parts.replicas.language, parts.replicas.increments)
    one, two = (learn(on, state, "colors", lesson, settings) for on in (alone, parts.replicas))
    assert two.loss == pytest.approx(one.loss, rel=1e-4)
    assert torch.allclose(one.state.up["o_proj"], two.state.up["o_proj"], atol=1e-5)
    served = Served.of(one.state, alone.increments)
    scores = [score_state(on, served, encoded, parts.store(encoded)) for on in (alone, parts.replicas)]
    assert scores[0].correct == scores[1].correct
    assert scores[0].loss == pytest.approx(scores[1].loss, rel=1e-5)


def test_a_failure_leaves_no_replica_in_use(parts: Parts):
    running = threading.Event()

    def work(_on: Replica, item: int) -> int:
        if item == 0:
            raise ValueError("the first item is bad")
        running.set()
        return item

    with pytest.raises(ValueError, match="bad"):
        parts.replicas.map(work, range(8))
    busy: list[Replica] = []
    meet = threading.Barrier(2, timeout=20)

    def both(on: Replica, _item: int) -> None:
        busy.append(on)
        meet.wait()

    parts.replicas.map(both, range(2))
    assert len({id(on) for on in busy}) == 2


@pytest.mark.parametrize(
    ("cores", "threads", "expected"),
    [(1, 0, (1, 1)), (2, 0, (2, 1)), (16, 0, (4, 4)), (2, 2, (1, 2)), (8, 4, (2, 4))],
)
def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(cores)))
    assert share_cores(threads, on_cpu=True) == expected
    assert share_cores(threads, on_cpu=False)[0] == 1
