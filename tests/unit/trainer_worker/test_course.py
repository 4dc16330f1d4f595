"""How long a run is: a target that is reached by luck does not end it."""

from __future__ import annotations

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
