"""How long a run is: a target that is reached by luck does not end it."""

from __future__ import annotations

from typing import Any

from adapter_store.jobs.hyperparameters import Hyperparameters
from trainer_worker.course import Course


def run_of(scores: dict[int, float], *, usually: float) -> int:
    """Return how many steps a run takes whose validation after step n says ``scores[n]`` or ``usually``."""
    settings = Hyperparameters(target_accuracy=1.0, patience=0, warmup_ratio=0.05)
    course = Course(settings, steps_per_epoch=1)
    while not course.done():
        course.step(1, 1.0)
        if course.time_to_validate():
            course.note(scores.get(course.steps, usually), 1.0)
    return course.steps


def test_a_run_that_never_is_right_takes_all_steps() -> None:
    assert run_of({}, usually=0.0) == Course(Hyperparameters(), 1).total


def test_one_lucky_validation_ends_nothing() -> None:
    assert run_of({4: 1.0}, usually=0.0) == run_of({}, usually=0.0)


def test_three_in_a_row_end_it_early() -> None:
    steps = run_of({}, usually=1.0)
    assert 12 < steps < run_of({}, usually=0.0) / 2


def test_what_is_wrong_again_while_the_rate_falls_is_learned_to_the_end() -> None:
    assert run_of({4: 1.0, 8: 1.0, 12: 1.0}, usually=0.0) == run_of({}, usually=0.0)


def run_at(
    losses: list[float],
    *,
    validations: list[float] | None = None,
    served: list[float] | None = None,
    **given: Any,
) -> int:
    """Return how many steps a run of 4 steps a pass takes.

    ``losses`` are those of steps, ``validations`` of validations, ``served`` those that confirmations find;
    the last of each goes on.
    """
    course = Course(Hyperparameters().model_copy(update=given), steps_per_epoch=4)
    found = list(served or [0.001])
    while not course.done():
        course.step(16, losses[min(course.steps, len(losses) - 1)])
        if validations and course.time_to_validate():
            course.note(0.5, validations[min(course.steps // 4, len(validations)) - 1])
        if course.time_to_confirm():
            course.confirm(found.pop(0) if len(found) > 1 else found[0])
    return course.steps


PLAN = Course(Hyperparameters(), 4).total


def test_what_is_known_by_heart_is_not_learned_on() -> None:
    steps = run_at([1.0] * 20 + [0.001])
    assert 30 < steps < 50 < PLAN


def test_one_batch_that_is_not_known_yet_counts_a_pass_anew() -> None:
    assert run_at([1.0] * 20 + [0.001] * 9 + [0.5] + [0.001]) == run_at([1.0] * 30 + [0.001])


def test_what_is_served_must_know_it_as_well() -> None:
    """Live tensors learn first; theta* may be far behind."""
    assert run_at([0.001], served=[0.5]) == PLAN
    assert run_at([0.001] * 10) < run_at([0.001], served=[0.5, 0.5, 0.001]) < PLAN


def test_what_is_forgotten_while_the_rate_falls_is_learned_to_the_end() -> None:
    assert run_at([0.001] * 12 + [0.5]) == PLAN


def test_validation_that_still_gains_keeps_a_run_going() -> None:
    gaining = [0.95**number for number in range(100)]
    assert run_at([0.001], validations=gaining) == PLAN
    assert run_at([0.001], validations=gaining[:8]) < PLAN / 1.5


def test_a_validation_loss_of_nearly_nothing_gains_no_more() -> None:
    nothing = [1e-3 * 0.95**number for number in range(100)]
    assert run_at([0.5], validations=nothing) < PLAN / 2


def test_passes_that_are_named_are_kept_to() -> None:
    assert run_at([0.001], epochs=40) == 160


def test_without_patience_a_run_is_as_long_as_planned() -> None:
    assert run_at([0.001], patience=0) == PLAN
