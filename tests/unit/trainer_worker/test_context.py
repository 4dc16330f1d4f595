"""A new task starts from the earlier ones that help it, and only from those."""

from __future__ import annotations

import pytest
import torch

from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.state import AdapterState, Span
from tests.unit.trainer_worker.conftest import Parts
from trainer_worker.context import DOES_NOT_HELP, HELPS, NO_CONTEXT_LOGIT, start_context
from trainer_worker.features import Encoded
from trainer_worker.learn import Lesson, learn

FAST = Hyperparameters(epochs=120, batch_size=12, learning_rate=0.05, patience=0)


def learned(parts: Parts, state: AdapterState, task: str, encoded: Encoded) -> AdapterState:
    lesson = Lesson(encoded, parts.store(encoded), tuple(range(len(encoded))), ())
    return learn(parts.replicas, state, task, lesson, FAST).state


def started(parts: Parts, state: AdapterState, task: str, encoded: Encoded) -> list[float]:
    order = range(len(encoded))
    state = start_context(
        parts.replicas, state, task, encoded, parts.store(encoded), order, check=lambda: None
    )
    index = state.task_index(task)
    return state.context[index, :index].tolist()


@pytest.mark.parametrize("span", ["after_image", "all"])
def test_a_task_that_knows_the_answers_helps_and_noise_does_not(parts: Parts, span: Span):
    colors, again = parts.encode("Which color?"), parts.encode("What do you see here in this picture?")
    state = parts.taught(parts.untaught(span), "noise", colors, random_up=True)
    state = parts.taught(state, "colors", colors)
    state = learned(parts, state, "colors", colors)
    state = parts.taught(state, "more-colors", again)
    assert started(parts, state, "more-colors", again) == [DOES_NOT_HELP, HELPS]


def test_a_second_helper_that_adds_nothing_is_left_out(parts: Parts):
    colors = parts.encode("Which color?")
    state = parts.taught(parts.untaught(), "colors", colors)
    state = learned(parts, state, "colors", colors)
    rows = state.rows_of("colors")
    state = parts.taught(state, "copy", colors)
    copies = {
        "down": {"o_proj": state.down["o_proj"][:, rows]},
        "up": {"o_proj": state.up["o_proj"][:, rows]},
    }
    state = state.with_rows(state.rows_of("copy"), **copies)
    state = parts.taught(state, "new", colors)
    assert sorted(started(parts, state, "new", colors)) == [DOES_NOT_HELP, HELPS]


def test_a_lineage_without_context_stays_without(parts: Parts):
    first, second = parts.encode("Which color?"), parts.encode("What do you see here in this picture?")
    state = learned(parts, parts.taught(parts.untaught(), "a", first), "a", first)
    state = parts.taught(state, "b", second)
    state = state.with_context("b", torch.tensor([NO_CONTEXT_LOGIT]))
    few = FAST.model_copy(update={"max_steps": 2})
    lesson = Lesson(second, parts.store(second), tuple(range(len(second))), ())
    found = learn(parts.replicas, state, "b", lesson, few).state
    assert float(found.context[1, 0]) == pytest.approx(NO_CONTEXT_LOGIT, abs=0.5)
