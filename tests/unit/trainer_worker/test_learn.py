"""Learning moves one task's increments and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.state import CLOSED_CONTEXT
from tests.unit.trainer_worker.conftest import Parts
from trainer_worker.course import Course
from trainer_worker.evaluate import Served, forward, leak_ratio, score_state
from trainer_worker.learn import Learned, Lesson, Pupil, chance_loss, learn, split_validation
from trainer_worker.progress import Interrupted
from trainer_worker.samples import build_batch, pack_rows

FAST = Hyperparameters(epochs=120, batch_size=12, learning_rate=0.05, patience=0)


def taught(parts: Parts, state, task: str, encoded, settings: Hyperparameters = FAST, **kwargs) -> Learned:
    order = tuple(range(len(encoded)))
    lesson = Lesson(encoded, parts.store(encoded), order, kwargs.pop("validation", ()))
    return learn(parts.replicas, state, task, lesson, settings, **kwargs)


@pytest.mark.parametrize("span", ["after_image", "all"])
def test_a_task_is_learned_and_the_base_stays_as_it_was(parts: Parts, span):
    before = {name: tensor.clone() for name, tensor in parts.base.model.state_dict().items()}
    encoded = parts.encode()
    state = parts.taught(parts.untaught(span), "colors", encoded)
    learned = taught(parts, state, "colors", encoded)
    store = parts.store(encoded)
    score = score_state(parts.replicas, Served.of(learned.state, parts.replicas.increments), encoded, store)
    untaught = score_state(parts.replicas, Served.of(state, parts.replicas.increments), encoded, store)
    assert score.loss < 0.25 * untaught.loss
    assert score.accuracy is not None
    assert score.accuracy >= 0.9
    after = parts.base.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_earlier_rows_stay_byte_identical_and_the_context_learns(parts: Parts):
    first = parts.encode("Which color?")
    second = parts.encode("What do you see here in this picture?")
    state = taught(parts, parts.taught(parts.untaught(), "a", first), "a", first).state
    expanded = parts.taught(state, "b", second)
    learned = taught(parts, expanded, "b", second).state
    old, new = state.rows_of("a"), learned.rows_of("b")
    for target in state.targets:
        assert torch.equal(learned.down[target][:, old], state.down[target])
        assert torch.equal(learned.up[target][:, old], state.up[target])
        assert not torch.equal(learned.up[target][:, new], expanded.up[target][:, new])
    assert torch.equal(learned.keys[: len(old)], state.keys)
    assert torch.equal(learned.usage[0, : len(old)], state.usage[0])
    assert torch.equal(learned.context[0], torch.zeros(2))
    assert float(learned.context[1, 0]) != float(expanded.context[1, 0])
    assert leak_ratio(learned, first.queries, "a") < 0.5


def test_a_branch_learns_alone_under_the_context_that_its_task_has(parts: Parts):
    first, second = parts.encode("Which color?"), parts.encode("What do you see here in this picture?")
    state = parts.taught(parts.untaught(), "a", first, random_up=True)
    state = parts.taught(state, "b", second, random_up=True)
    old = state.rows_of("b")
    state = state.branch("b", old[:2], second.queries[:2, None])
    rows = torch.tensor([state.rows - 2, state.rows - 1])
    lesson = Lesson(second, parts.store(second), tuple(range(len(second))), ())
    few = FAST.model_copy(update={"max_steps": 3, "ema_mode": "off"})
    learned = learn(parts.replicas, state, "b", lesson, few, rows=rows).state
    for target in state.targets:
        assert torch.equal(learned.up[target][:, : state.rows - 2], state.up[target][:, : state.rows - 2])
        assert torch.equal(learned.down[target][:, : state.rows - 2], state.down[target][:, : state.rows - 2])
        assert (learned.up[target][:, rows] != state.up[target][:, rows]).any()
    assert torch.equal(learned.context, state.context)


def test_a_closed_context_stays_closed_however_long_a_task_learns(parts: Parts):
    first, second = parts.encode("Which color?"), parts.encode("What do you see here in this picture?")
    state = parts.taught(parts.untaught(), "a", first, random_up=True)
    state = parts.taught(state, "b", second)
    closed = state.with_context("b", torch.tensor([CLOSED_CONTEXT]))
    many = FAST.model_copy(update={"max_steps": 60, "weight_decay": 1.0, "ema_mode": "off"})
    assert torch.equal(taught(parts, closed, "b", second, many).state.context, closed.context)
    assert not torch.equal(taught(parts, state, "b", second, many).state.context, state.context)


@pytest.mark.parametrize("mode", ["off", "fixed"])
def test_sharing_moves_other_tasks_rows_that_the_batch_uses_and_only_those(parts: Parts, mode: str):
    first, second = parts.encode("Which color?"), parts.encode("What do you see here in this picture?")
    state = parts.taught(parts.untaught(), "a", first, random_up=True)
    state = parts.taught(state, "b", second)
    few = FAST.model_copy(update={"max_steps": 4, "ema_mode": mode})
    alone = taught(parts, state, "b", second, few).state
    shared = taught(parts, state, "b", second, few.model_copy(update={"share": True})).state
    old = state.rows_of("a")
    used = old[state.usage[0, old] > 0]
    assert 0 < len(used) <= len(old)
    moved = (shared.up["o_proj"] != state.up["o_proj"]).flatten(2).any(dim=2).any(dim=0)
    assert moved[used].all()
    assert torch.equal(alone.up["o_proj"][:, old], state.up["o_proj"][:, old])
    assert torch.equal(shared.keys, state.keys)


def test_without_an_average_what_is_served_is_what_was_trained(parts: Parts):
    encoded = parts.encode()
    state = parts.taught(parts.untaught(), "colors", encoded)
    few = FAST.model_copy(update={"max_steps": 3})
    served = {
        mode: taught(parts, state, "colors", encoded, few.model_copy(update={"ema_mode": mode})).state
        for mode in ("off", "fixed")
    }
    sizes = {mode: float(found.up["o_proj"].abs().mean()) for mode, found in served.items()}
    assert sizes["fixed"] < 0.2 * sizes["off"]


def test_gradients_reach_only_live_tensors_and_selection_is_masked_to_the_task(parts: Parts):
    first, second = parts.encode("Which color?"), parts.encode("Which color?")
    state = parts.taught(parts.untaught(), "a", first, random_up=True)
    state = parts.taught(state, "b", second)
    pupil = Pupil(state, "b", second.queries, parts.replicas.language.device)
    assert not bool(pupil.intrinsic[:, state.rows_of("a")].any())
    assert pupil.intrinsic.sum(dim=1).tolist() == pytest.approx([1.0] * len(second))
    batch = build_batch(
        second.samples, second.prefixes, pack_rows(second.samples, [0, 1], pack=1, alike=None), cached=True
    )
    logits = forward(parts.replicas.first, batch, parts.store(second), pupil.activate)
    logits.logsumexp(dim=1).sum().backward()
    assert all(tensor.grad is not None for tensor in pupil.live.values())
    assert float(pupil.live["context"].grad.abs().sum()) > 0  # type: ignore[union-attr]
    assert not any(parameter.grad is not None for parameter in parts.base.model.parameters())


def test_training_can_be_interrupted_and_is_repeatable(parts: Parts):
    encoded = parts.encode()
    state = parts.taught(parts.untaught(), "colors", encoded)
    few = FAST.model_copy(update={"max_steps": 3})
    one, two = (taught(parts, state, "colors", encoded, few).state for _ in range(2))
    assert torch.equal(one.up["o_proj"], two.up["o_proj"])
    calls = iter([None, None])

    def check() -> None:
        if next(calls, "stop") == "stop":
            raise Interrupted("stopping")

    with pytest.raises(Interrupted):
        taught(parts, state, "colors", encoded, few, check=check)


def test_a_plateau_ends_training_early_and_time_is_a_limit(parts: Parts):
    encoded = parts.encode(count=24)
    state = parts.taught(parts.untaught(), "colors", encoded)
    patient = FAST.model_copy(update={"epochs": 400.0, "patience": 2, "learning_rate": 1e-6})
    scores: list[float | None] = []
    learned = taught(
        parts,
        state,
        "colors",
        encoded,
        patient,
        validation=(0, 1, 2),
        report=lambda step: scores.append(step.validation),
    )
    assert learned.steps < 100
    assert any(score is not None for score in scores)
    hasty = FAST.model_copy(update={"epochs": 4000.0, "max_seconds": 0.5, "patience": 0})
    assert taught(parts, state, "colors", encoded, hasty).seconds < 5


def test_validation_pictures_come_from_the_training_data_by_picture():
    settings = Hyperparameters(validation_ratio=0.1, validation_cap=5)
    groups = [n // 2 for n in range(100)]
    train, validation = split_validation(groups, settings, seed=0)
    assert len({groups[i] for i in validation}) == 5
    assert {groups[i] for i in train} & {groups[i] for i in validation} == set()
    assert split_validation([0, 1, 2], settings, seed=0) == ((0, 1, 2), ())


@pytest.mark.parametrize(("per_epoch", "again", "steps"), [(2, False, 160), (2, True, 20), (100, False, 400)])
def test_what_is_planned_when_nobody_says(per_epoch: int, again: bool, steps: int):
    assert Course(Hyperparameters(epochs=0), per_epoch, again=again).total == steps
    assert Course(Hyperparameters(epochs=3), per_epoch, again=again).total == 3 * per_epoch


def course_at(losses: list[float], chance: float | None, **given: float) -> Course:
    """Return a course of 4 steps a pass after so many steps, validated without progress after each pass."""
    course = Course(Hyperparameters(patience=2).model_copy(update=given), 4, chance=chance)
    for loss in losses:
        course.step(16, loss)
        if course.time_to_validate():
            course.note(0.1, 1.0)
    return course


def test_steps_at_chance_are_not_counted_within_a_bound():
    planned = Course(Hyperparameters(), 4).total
    stuck = course_at([1.15] * planned, chance=1.15)
    assert not stuck.done()
    assert stuck.rate() == pytest.approx(1, abs=0.01)
    assert stuck.progress() == pytest.approx(1 / 3, abs=0.01)
    late = course_at([1.15] * planned + [0.3] * planned, chance=1.15)
    assert late.done()
    never = course_at([1.15] * 2 * planned, chance=1.15)
    assert never.done()


def test_a_plateau_elsewhere_and_passes_that_are_named_end_a_run_as_planned():
    planned = Course(Hyperparameters(), 4).total
    assert course_at([0.5] * planned, chance=1.15).done()
    assert course_at([1.15] * planned, chance=None).done()
    assert course_at([1.15] * 40, chance=1.15, epochs=10).done()
    assert course_at([1.15] * 30, chance=1.15, max_steps=30).done()


def test_chance_is_the_entropy_of_answers_that_recur(parts: Parts):
    encoded = parts.encode(count=12)
    lesson = Lesson(encoded, parts.store(encoded), tuple(range(12)), ())
    tokens = sum(sum(sample.answer) for sample in encoded.samples)
    assert chance_loss(lesson) == pytest.approx(12 * math.log(3) / tokens)
    assert chance_loss(replace(lesson, train=(0, 1, 2))) is None
    assert chance_loss(replace(lesson, train=(0, 3, 6, 9))) is None
