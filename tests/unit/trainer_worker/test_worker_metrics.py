"""The worker's series: there before anything happens, and gone with the task they tell of."""

from __future__ import annotations

import math

import pytest

from trainer_worker.metrics import DECISIONS, PHASES, WorkerMetrics


def test_what_can_happen_is_shown_before_it_happens():
    value = WorkerMetrics().registry.get_sample_value
    assert all(value("strata_promotions_total", {"decision": decision}) == 0 for decision in DECISIONS)
    assert all(value("strata_job_seconds_count", {"phase": phase}) == 0 for phase in PHASES)
    assert math.isnan(value("strata_candidate_zero_shot_retention_ratio") or 0)
    for status in ("succeeded", "failed", "cancelled"):
        assert value("strata_jobs_total", {"status": status}) == 0


def test_a_task_that_is_no_longer_measured_is_no_longer_shown():
    metrics = WorkerMetrics()
    metrics.measured({"a": 0.5, "b": 0.75}, {"a": 0.25}, {"a": 0.1, "b": 0.0}, 0.99)
    assert metrics.registry.get_sample_value("strata_candidate_zero_shot_retention_ratio") == 0.99
    metrics.measured({"a": 0.5, "c": None}, {"a": None}, {"a": 0.1}, None)
    value = metrics.registry.get_sample_value
    assert value("strata_candidate_task_accuracy_ratio", {"task": "a"}) == pytest.approx(0.5)
    assert value("strata_candidate_task_accuracy_ratio", {"task": "b"}) is None
    assert value("strata_candidate_task_accuracy_ratio", {"task": "c"}) is None
    assert value("strata_candidate_task_forgetting_ratio", {"task": "a"}) is None
    assert math.isnan(value("strata_candidate_zero_shot_retention_ratio") or 0)
