"""The forgetting gate, the matrix stage and the moves of the aliases."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from adapter_store.datasets.luck import binomial_tail
from adapter_store.matrix import AccuracyMatrix
from adapter_store.state import AdapterState
from adapter_store.versions import Gate, Manifest, ManifestDraft, MeasuredOn, VersionStore
from trainer_worker.gate import Fresh, Measured, Policy, check
from trainer_worker.measuring import Parent, best_before
from trainer_worker.publish import promote, stage_matrix


def measured(**changes: object) -> Measured:
    values: dict = {
        "trained": "b",
        "new_task": True,
        "before": {"a": 0.95, "b": 0.1},
        "after": {"a": 0.94, "b": 0.9},
        "leak": {"a": 0.0, "b": 0.01},
        "retention": 0.99,
        "fresh": Fresh(correct=45, answers=50, commonest=0.1),
    }
    return Measured(**{**values, **changes})


def test_a_good_version_passes_and_bounds_are_inclusive():
    assert check(measured(), Policy()) == Gate(passed=True, reasons=())
    assert check(measured(after={"a": 0.93, "b": 0.9}), Policy()).passed


def test_one_question_of_many_is_no_forgetting():
    one_of_36 = {"before": {"a": 35 / 36, "b": 0.1}, "after": {"a": 34 / 36, "b": 0.9}, "asked": {"a": 36}}
    assert check(measured(**one_of_36), Policy()).passed
    assert not check(measured(**one_of_36), Policy(max_forgetting=0)).passed
    two = {**one_of_36, "after": {"a": 33 / 36, "b": 0.9}}
    assert not check(measured(**two), Policy()).passed
    one_of_10 = {"before": {"a": 1.0, "b": 0.1}, "after": {"a": 0.9, "b": 0.9}, "asked": {"a": 10}}
    assert not check(measured(**one_of_10), Policy()).passed
    again = {"new_task": False, "before": {"b": 35 / 36}, "after": {"b": 34 / 36}, "asked": {"b": 36}}
    assert not check(measured(**again), Policy()).passed


def test_every_reason_is_named():
    bad = measured(after={"a": 0.9, "b": 0.1}, leak={"a": 0.2, "b": 0}, retention=0.5)
    gate = check(bad, Policy())
    assert not gate.passed
    assert [
        word in reason
        for word, reason in zip(("fell", "leak", "retention", "gained"), gate.reasons, strict=False)
    ] == [True] * 4


def test_unmeasured_tasks_and_probes_do_not_block():
    known = measured(
        new_task=False,
        before={},
        after={"a": None, "b": None},
        retention=None,
        leak={},
        fresh=None,
        alike=True,
    )
    assert check(known, Policy()).passed


def test_a_task_that_cannot_be_measured_any_more_holds_the_version_back():
    gate = check(measured(after={"a": None, "b": 0.9}), Policy())
    assert not gate.passed
    assert "a scored 0.950 before and could not be measured now" in gate.reasons[0]


def test_the_tail_of_the_binomial_is_exact():
    for trials, share in ((1, 0.5), (7, 0.3), (12, 0.9)):
        exact = [math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(trials + 1)]
        for least in range(trials + 1):
            assert binomial_tail(least, trials, share) == pytest.approx(sum(exact[least:]))
    assert (binomial_tail(1, 3, 0.0), binomial_tail(0, 3, 0.0), binomial_tail(3, 3, 1.0)) == (0.0, 1.0, 1.0)
    assert 0 < binomial_tail(1600, 1600, 0.99) < 1


@pytest.mark.parametrize(
    ("fresh", "word"),
    [
        (Fresh(correct=7, answers=50, commonest=0.14), "do not seem to belong together"),
        (Fresh(correct=50, answers=50, commonest=1.0), "is the same"),
        (Fresh(correct=2, answers=2, commonest=0.5), "too few"),
        (None, "nothing can be measured"),
    ],
)
def test_a_new_task_that_luck_explains_is_held_back(fresh: Fresh | None, word: str):
    (reason,) = check(measured(fresh=fresh), Policy()).reasons
    assert word in reason
    assert check(measured(fresh=fresh), Policy(max_chance=1)).passed


def test_a_known_task_needs_no_evidence_from_few_or_like_pictures_but_from_many():
    known = {"new_task": False, "before": {"b": 0.9}, "after": {"b": 0.9}}
    for fresh in (None, Fresh(correct=0, answers=2, commonest=0.5), Fresh(5, 10, commonest=1.0)):
        assert check(measured(**known, fresh=fresh, alike=True), Policy()).passed
        assert not check(measured(**known, fresh=fresh), Policy()).passed
    shuffled = Fresh(correct=6, answers=50, commonest=0.14)
    assert not check(measured(**known, fresh=shuffled), Policy()).passed


def test_what_a_retrained_task_knew_before_counts_on_its_own():
    known = {"new_task": False, "before": {"b": 0.5}, "after": {"b": 0.9}}
    assert check(measured(**known, kept=(0.9, 0.89)), Policy()).passed
    (reason,) = check(measured(**known, kept=(0.9, 0.5)), Policy()).reasons
    assert "held out first" in reason


def test_only_stages_with_the_same_held_out_set_are_compared():
    matrix = AccuracyMatrix(
        tasks=("a", "b"),
        base=(0.1, 0.1),
        rows=((0.99, None), (0.8, 0.7), (0.7, 0.6)),
        trained=("a", "b", "b"),
    )
    assert best_before(matrix, {}) == {"a": 0.99, "b": 0.7}
    splits = {"a": MeasuredOn(dataset_id="ds-2", since=1), "b": MeasuredOn(dataset_id="ds-3", since=2)}
    assert best_before(matrix, splits) == {"a": 0.8, "b": 0.6}
    assert best_before(matrix, {}, since=1) == {"a": 0.8, "b": 0.7}


def test_what_an_operator_promoted_against_the_gate_is_the_measure_from_then_on():
    matrix = AccuracyMatrix(
        tasks=("a", "b"), base=(0.1, 0.1), rows=((0.95, None), (0.9, 0.7)), trained=("a", "b")
    )
    values = {"base_id": "x", "base_digest": "0", "job_id": "j", "dataset_id": "d", "task": "b"}
    values |= {
        "decision": "expand",
        "tasks": ("a", "b"),
        "lineage": "l",
        "version": "v2",
        "fence": 1,
        "files": {},
    }
    values["splits"] = {"a": {"dataset_id": "first", "since": 0}}
    values["anchors"] = {"a": {"dataset_id": "first", "best": 0.95, "last": 0.95}}
    manifest = Manifest.model_validate({**values, "accuracy": matrix, "gate": Gate(passed=False)})
    state = AdapterState.empty("0", {"o_proj": (1, 4, 4)}, query_width=4)
    parent = Parent.of(manifest, state)
    assert best_before(parent.matrix, parent.splits, parent.compared_since)["a"] == 0.9
    assert (parent.anchors["a"].best, parent.anchors["a"].last) == (0.9, 0.9)
    later = manifest.model_copy(update={"gate": Gate(passed=True), "compared_since": parent.compared_since})
    assert Parent.of(later, state).compared_since == 1
    never = manifest.model_copy(update={"gate": Gate(passed=True)})
    assert Parent.of(never, state).compared_since == 0


def test_a_retrained_task_may_stay_but_not_fall():
    same = measured(new_task=False, before={"b": 1.0}, after={"b": 1.0})
    assert check(same, Policy()).passed
    gate = check(measured(new_task=False, before={"b": 1.0}, after={"b": 0.9}), Policy())
    assert gate.reasons == ("b fell from 1.000 to 0.900, more than 2.0 points",)


@pytest.mark.parametrize("task", ["a", "b"])
@pytest.mark.parametrize("points", range(3, 101))
def test_a_fall_by_exactly_the_bound_passes_whatever_floats_make_of_it(task: str, points: int):
    def falls_by(more: int) -> Gate:
        before, after = {task: points / 100}, {task: (points - more) / 100}
        return check(measured(new_task=False, before=before, after=after), Policy())

    assert falls_by(2).passed
    assert not falls_by(3).passed


def test_the_other_bounds_are_exact_as_well():
    policy = Policy()
    assert check(measured(leak={"a": 0.05}, retention=0.97), policy).passed
    assert not check(measured(leak={"a": 0.0501}), policy).passed
    assert not check(measured(retention=0.9699), policy).passed
    assert not check(measured(before={"b": 0.1}, after={"b": 0.3 - 0.2}), policy).passed


def test_a_stage_without_held_out_pictures_has_a_missing_score():
    first = stage_matrix(AccuracyMatrix.empty(), "a", {"a": 0.9}, {"a": 0.1})
    second = stage_matrix(first, "b", {"a": 0.8, "b": None}, {})
    assert second.rows == ((0.9, None), (0.8, None))
    assert second.trained == ("a", "b")
    assert second.forgetting_of("a") == pytest.approx(0.1)


def published(store: VersionStore, folder: Path, job: str, parent: str, *, passed: bool = True) -> Manifest:
    folder.mkdir()
    (folder / "state.json").write_text(job)
    draft = ManifestDraft(
        parent=parent,
        base_id="b",
        base_digest="d",
        job_id=job,
        dataset_id="ds-0",
        task="a",
        decision="expand",
        tasks=("a",),
        gate=Gate(passed=passed, reasons=() if passed else ("too bad",)),
    )
    return store.publish(folder, draft, fence=1)


def test_promotion_moves_stable_and_previous_once(tmp_path: Path):
    store = VersionStore(tmp_path / "store", "m")
    first = published(store, tmp_path / "1", "job-1", "base")
    for _ in range(2):
        assert promote(store.aliases, first).decision == "promoted"
    second = published(store, tmp_path / "2", "job-2", "v1")
    assert promote(store.aliases, second).decision == "promoted"
    assert [store.aliases.get(name).version for name in ("stable", "previous")] == ["v2", "v1"]  # type: ignore[union-attr]
    assert [record.version for record in store.aliases.history("stable")] == ["v1", "v2"]


def test_a_version_held_back_or_measured_against_another_parent_stays_a_candidate(tmp_path: Path):
    store = VersionStore(tmp_path / "store", "m")
    held = published(store, tmp_path / "1", "job-1", "base", passed=False)
    assert promote(store.aliases, held).decision == "held_back"
    assert store.aliases.get("stable") is None
    store.aliases.move("stable", "v1", expected_revision=0, reason="an operator", actor="operator")
    late = published(store, tmp_path / "2", "job-2", "base")
    assert promote(store.aliases, late).decision == "conflict"
    assert store.aliases.get("stable").version == "v1"  # type: ignore[union-attr]


def test_a_rollback_after_promotion_is_not_undone(tmp_path: Path):
    store = VersionStore(tmp_path / "store", "m")
    first = published(store, tmp_path / "1", "job-1", "base")
    second = published(store, tmp_path / "2", "job-2", "v1")
    promote(store.aliases, first)
    promote(store.aliases, second)
    store.aliases.rollback("stable", reason="worse in use", actor="operator")
    store.aliases.remember_previous()
    assert promote(store.aliases, second).decision == "superseded"
    assert store.aliases.get("stable").version == "v1"  # type: ignore[union-attr]
    assert store.aliases.get("previous").version == "v2"  # type: ignore[union-attr]
