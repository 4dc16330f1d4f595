"""The measures, each checked against a value worked out by hand."""

from __future__ import annotations

import csv
import io
import json

import pytest
from pydantic import ValidationError

from adapter_store.matrix import AccuracyMatrix

# Three tasks learned one after another; the last column of early rows was measured before its task came.
THREE = AccuracyMatrix(
    tasks=("digits", "animals", "flags"),
    base=(0.10, 0.20, 0.05),
    rows=((0.90, 0.25, None), (0.95, 0.80, None), (0.85, 0.82, 0.70)),
    trained=("digits", "animals", "flags"),
)


def test_average_accuracy_is_the_mean_of_the_last_row() -> None:
    assert THREE.average_accuracy() == pytest.approx((0.85 + 0.82 + 0.70) / 3)


def test_mean_average_accuracy_takes_only_tasks_seen_by_then() -> None:
    by_hand = (0.90 + (0.95 + 0.80) / 2 + (0.85 + 0.82 + 0.70) / 3) / 3
    assert THREE.mean_average_accuracy() == pytest.approx(by_hand)


def test_forgetting_is_measured_from_the_best_earlier_row() -> None:
    assert THREE.forgetting_of("digits") == pytest.approx(0.95 - 0.85)
    assert THREE.forgetting_of("animals") == pytest.approx(0.80 - 0.82)
    assert THREE.forgetting_of("flags") is None
    assert THREE.forgetting() == pytest.approx((0.10 - 0.02) / 2)


def test_a_score_from_before_a_task_was_learned_cannot_be_forgotten() -> None:
    matrix = AccuracyMatrix(
        tasks=("a", "b", "c"),
        base=(0, 0.99, 0),
        rows=((1.0, 0.99, None), (1.0, 0.50, None), (1.0, 0.50, 1.0)),
        trained=("a", "b", "c"),
    )
    assert matrix.forgetting_of("b") == 0.0


def test_backward_transfer_and_new_task_accuracy_use_the_diagonal() -> None:
    assert THREE.backward_transfer() == pytest.approx(((0.85 - 0.90) + (0.82 - 0.80)) / 2)
    assert THREE.new_task_accuracy() == pytest.approx((0.90 + 0.80 + 0.70) / 3)


def test_a_retrained_task_counts_from_its_latest_training() -> None:
    matrix = AccuracyMatrix(
        tasks=("a", "b"),
        base=(0.1, 0.1),
        rows=((0.6, None), (0.5, 0.8), (0.9, 0.7), (0.85, 0.9)),
        trained=("a", "b", "a", "b"),
    )
    # a: latest training is stage 2 (0.9), now 0.85. b: trained at the last stage, so no transfer yet.
    assert matrix.backward_transfer() == pytest.approx(0.85 - 0.9)
    assert matrix.forgetting_of("a") == pytest.approx(0.9 - 0.85)
    assert matrix.forgetting_of("b") == pytest.approx(0.8 - 0.9)
    assert matrix.forgetting() == pytest.approx((0.05 - 0.1) / 2)
    assert matrix.new_task_accuracy() == pytest.approx((0.6 + 0.8) / 2)
    assert matrix.average_accuracy() == pytest.approx((0.85 + 0.9) / 2)
    assert matrix.mean_average_accuracy() == pytest.approx((0.6 + 0.65 + 0.8 + 0.875) / 4)


def test_scores_from_an_earlier_held_out_set_take_no_part() -> None:
    matrix = AccuracyMatrix(
        tasks=("a", "b"),
        base=(0.1, 0.1),
        rows=((0.9, None), (0.6, 0.8), (0.5, 0.7), (0.55, 0.7)),
        trained=("a", "b", "b", "b"),
    )
    # a was measured on another set up to stage 0; on the present one it had 0.6, 0.5, 0.55.
    since = {"a": 1}
    assert matrix.forgetting_of("a", since) == pytest.approx(0.6 - 0.55)
    assert matrix.backward_transfer(since) == pytest.approx(0.55 - 0.6)
    assert matrix.forgetting(since) == pytest.approx((0.05 + 0.1) / 2)
    assert matrix.summary(since)["backward_transfer"] == pytest.approx(0.55 - 0.6)
    assert matrix.forgetting_of("a", {"a": 3}) is None
    assert matrix.backward_transfer({"a": 3}) == 0.0


def test_missing_scores_take_no_part() -> None:
    matrix = AccuracyMatrix(
        tasks=("a", "b"), base=(None, 0.2), rows=((0.5, float("nan")), (None, 0.6)), trained=("a", "b")
    )
    assert matrix.rows[0][1] is None
    assert matrix.average_accuracy() == pytest.approx(0.6)
    assert matrix.forgetting_of("a") is None
    assert matrix.forgetting() == 0.0
    assert matrix.backward_transfer() == 0.0


def test_empty_and_single_stage() -> None:
    empty = AccuracyMatrix.empty()
    assert (empty.average_accuracy(), empty.mean_average_accuracy(), empty.new_task_accuracy()) == (None,) * 3
    assert (empty.forgetting(), empty.backward_transfer()) == (0.0, 0.0)
    one = empty.with_stage("a", {"a": 0.75}, {"a": 0.5})
    assert (one.average_accuracy(), one.forgetting(), one.backward_transfer()) == (0.75, 0.0, 0.0)


def test_with_stage_builds_the_same_matrix_step_by_step() -> None:
    matrix = (
        AccuracyMatrix.empty()
        .with_stage("digits", {"digits": 0.90, "animals": 0.25}, {"digits": 0.10, "animals": 0.20})
        .with_stage("animals", {"digits": 0.95, "animals": 0.80}, {"digits": 0.99})
        .with_stage("flags", {"digits": 0.85, "animals": 0.82, "flags": 0.70}, {"flags": 0.05})
    )
    assert matrix == THREE
    assert matrix.base[0] == 0.10, "a base score once measured stays"
    assert matrix.seen(0) == ("digits",)
    assert matrix.score(-1, "flags") == 0.05


def test_with_stage_refuses_a_stage_without_its_own_score() -> None:
    with pytest.raises(ValueError, match="no score"):
        AccuracyMatrix.empty().with_stage("a", {"b": 0.5})


def test_json_holds_no_nan_and_comes_back_as_it_was() -> None:
    assert json.loads(json.dumps(THREE.summary(), allow_nan=False))["forgetting"] == pytest.approx(0.04)
    assert THREE.forgetting_of("flags") is None
    assert AccuracyMatrix.model_validate_json(THREE.model_dump_json()) == THREE
    assert AccuracyMatrix.model_validate({}) == AccuracyMatrix.empty()


def test_csv_has_a_base_row_and_empty_cells() -> None:
    rows = list(csv.reader(io.StringIO(THREE.to_csv())))
    assert rows[0] == ["stage", "trained", "digits", "animals", "flags"]
    assert rows[1] == ["base", "", "0.1", "0.2", "0.05"]
    assert rows[2] == ["1", "digits", "0.9", "0.25", ""]
    assert len(rows) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": (0.1,)}, "one score for each"),
        ({"trained": ("digits",)}, "rows need as many names"),
        ({"trained": ("digits", "animals", "birds")}, "without a column: birds"),
        ({"base": (0.1, 0.2, 1.5)}, "outside 0 to 1"),
        ({"base": (0.1, 0.2, float("inf"))}, "outside 0 to 1"),
        ({"tasks": ("digits", "digits", "flags")}, "listed twice"),
        ({"tasks": ("digits", "../x", "flags")}, "not allowed"),
    ],
)
def test_inconsistent_matrices_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AccuracyMatrix.model_validate({**THREE.model_dump(), **changes})


def test_unknown_task() -> None:
    with pytest.raises(KeyError, match="birds"):
        THREE.forgetting_of("birds")
